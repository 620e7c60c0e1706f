"""Lower bounds of the memory traffic of operators, and so of their times.

The unit is one tensor of N tokens with C channels. States of heads and splits, rotation
angles and weights of convolutions are much smaller and not counted.
"""

# Tensors among q, k, v, y and their gradients that each kernel of RALA reads or writes.
RALA_FORWARD = {"query_sums": 1, "key_value_sums": 2, "outputs": 2}
RALA_BACKWARD = {"state_gradients": 3, "key_value_gradients": 4, "query_gradients": 3}
# Without token weights, the first pass over q is not needed.
_LINEAR_FORWARD = sum(RALA_FORWARD.values()) - RALA_FORWARD["query_sums"]
# Forward: q, k, v and y. Backward: these, and the gradients of y, q, k and v.
_SOFTMAX_FORWARD, _SOFTMAX_BACKWARD = 4, 8
_PASSES = {
    "rala": (sum(RALA_FORWARD.values()), sum(RALA_BACKWARD.values())),
    "linear": (_LINEAR_FORWARD, sum(RALA_BACKWARD.values())),
    "softmax": (_SOFTMAX_FORWARD, _SOFTMAX_BACKWARD),
}
# Queries and keys are read and written.
ROTATION = 4
# Forward: x, y. Gradient of the input: dx, dy. Gradient of the weight: x, dy.
DEPTHWISE = 2


def attention_tensors(kind: str, backward: bool) -> int:
    """Return how many tensors (N, C) attention reads and writes.

    Args:
        kind: ``'rala'``, ``'linear'`` or ``'softmax'``.
        backward: Whether the backward pass follows the forward pass.
    """
    forward_pass, backward_pass = _PASSES[kind]
    return forward_pass + backward_pass * backward
