"""A small agent model, trained by this project: its world, its tokenizer, its recipe.

The closed world and the tasks need the standard library only; torch and
transformers are imported by the modules that train and evaluate.
"""
