"""The bytes that operators move at least: the floor of their times.

Numbers are elements for each of the N C of the tokens. The states of heads and splits,
angles and weights of convolutions are small beside them and do not count.
"""

# What each kernel of RALA reads and writes of q, k, v, y and their gradients.
RALA_FORWARD = {"query_sums": 1, "key_value_sums": 2, "outputs": 2}
RALA_BACKWARD = {"state_gradients": 3, "key_value_gradients": 4, "query_gradients": 3}
# Without weights of the tokens no pass over q precedes the keys.
_LINEAR_FORWARD = sum(RALA_FORWARD.values()) - RALA_FORWARD["query_sums"]
# q, k, v and y; then these and the gradients of y, q, k and v.
_SOFTMAX_FORWARD, _SOFTMAX_BACKWARD = 4, 8
_PASSES = {
    "rala": (sum(RALA_FORWARD.values()), sum(RALA_BACKWARD.values())),
    "linear": (_LINEAR_FORWARD, sum(RALA_BACKWARD.values())),
    "softmax": (_SOFTMAX_FORWARD, _SOFTMAX_BACKWARD),
}
# Queries and keys, read and written.
ROTATION = 4
# Forward: x and y. Input gradient: those of y and x. Weight gradient: x and that of y.
DEPTHWISE = 2


def attention_elements(kind: str, backward: bool) -> int:
    """Count the elements that attention moves.

    Args:
        kind: ``'rala'``, ``'linear'`` or ``'softmax'``.
        backward: Whether the backward pass follows the forward pass.
    """
    forward_pass, backward_pass = _PASSES[kind]
    return forward_pass + backward_pass * backward
