"""Torch references: they define what each operator computes, plainly and in float32."""
