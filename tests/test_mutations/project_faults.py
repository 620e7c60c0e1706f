"""Faults of the projects."""

PROJECTS = {
    "clips/clip_attention.py": [
        (
            "frames come from the other side",
            "FRAMES = ((1,), (-1,))",
            "FRAMES = ((-1,), (1,))",
            "test_clip_attention.py::test_temporal_shift_copies_frames",
        ),
        (
            "values do not move in space",
            "spatial_shift(k, hw), spatial_shift(v, hw)",
            "spatial_shift(k, hw), v",
            "test_clip_attention.py::test_values_and_gradients_equal_a_loop",
        ),
    ],
    "hedgehog_distillation/distillation.py": [
        (
            "the target without the scale",
            "(q * q.shape[-1] ** -0.5 @ k",
            "(q @ k",
            "test_distillation.py::test_loss_and_gradients_by_the_formula",
        ),
    ],
}
