"""Operators with more than one implementation.

The plain form of an operator is its definition. One rule beside the operator selects a
faster form; :func:`plain_forms` turns these rules off.
"""

from .depthwise import depthwise_conv
from .dispatch import plain_forms
from .elu1 import elu1
from .layout import channels_first
from .linear import linear
from .rala import linear_attention_terms, rala
from .recompute import checkpoint_module, recompute
from .rotary import rotary_frequencies, rotary_table, rotate

__all__ = [
    "channels_first",
    "checkpoint_module",
    "depthwise_conv",
    "elu1",
    "linear",
    "linear_attention_terms",
    "plain_forms",
    "rala",
    "recompute",
    "rotary_frequencies",
    "rotary_table",
    "rotate",
]
