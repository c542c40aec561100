"""Placements, the compiler that turns them into collectives, and the model families."""

from baton_modeling.batch import ForwardBatch, StateSlots
from baton_modeling.cache import CacheGroup, CacheLayout, GroupKind, HeadBlock
from baton_modeling.checkpoint import Progress
from baton_modeling.communicators import Communicator, CountingComm, GlooComm, SingleComm
from baton_modeling.compiler.explain import Explanation
from baton_modeling.compiler.inductor import ExecutionError
from baton_modeling.compiler.operations import CompileError
from baton_modeling.compiler.verify import ReplicaMismatch
from baton_modeling.description import (
    CheckpointError,
    ModelDescription,
    fingerprint,
    read_model_description,
)
from baton_modeling.drafter import CompiledDrafter
from baton_modeling.lockstep import Lockstep
from baton_modeling.mesh import Axis, Mesh, MeshError, parse_mesh, tensor_parallel_mesh
from baton_modeling.model import CompiledModel, Forwarded, Options, explain_checkpoint, load_model
from baton_modeling.weights import WeightError

__all__ = [
    "Axis",
    "CacheGroup",
    "CacheLayout",
    "CheckpointError",
    "Communicator",
    "CompileError",
    "CompiledDrafter",
    "CompiledModel",
    "CountingComm",
    "ExecutionError",
    "Explanation",
    "ForwardBatch",
    "Forwarded",
    "GlooComm",
    "GroupKind",
    "HeadBlock",
    "Lockstep",
    "Mesh",
    "MeshError",
    "ModelDescription",
    "Options",
    "Progress",
    "ReplicaMismatch",
    "SingleComm",
    "StateSlots",
    "WeightError",
    "explain_checkpoint",
    "fingerprint",
    "load_model",
    "parse_mesh",
    "read_model_description",
    "tensor_parallel_mesh",
]
