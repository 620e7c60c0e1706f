"""Scenes of the shapes data set: their contents, and what must not reveal a class."""

import cv2
import numpy as np
import pytest

from ravlt.data.shapes.render import draw_scene

SIZE = (128, 160)


@pytest.fixture(scope="module")
def scenes() -> list:
    return [draw_scene(np.random.default_rng([9, i]), SIZE) for i in range(200)]


def test_numbers_of_objects_crowds_and_classes(scenes):
    counts = [sum(not one.crowd for one in instances) for _, instances in scenes]
    crowds = [sum(one.crowd for one in instances) for _, instances in scenes]
    assert set(counts) == {4, 5, 6, 7, 8, 9}
    assert set(crowds) == {0, 1}
    assert 0.03 < np.mean(crowds) < 0.14
    found = np.bincount([one.label for _, found in scenes for one in found])
    assert found.min() > 0.15 * found.sum()


def test_objects_scale_with_the_image():
    def mean_area(size):
        scenes = [draw_scene(np.random.default_rng([4, i]), size) for i in range(15)]
        return np.mean([one.mask.mean() for _, found in scenes for one in found])

    assert mean_area((256, 320)) == pytest.approx(mean_area((128, 160)), rel=0.3)


def test_objects_contrast_with_their_surroundings(scenes):
    faint = 0
    total = 0
    for image, instances in scenes[:60]:
        smooth = cv2.GaussianBlur(image, (0, 0), 1).astype(float)
        for one in instances:
            mask = one.mask.astype(np.uint8)
            rim = cv2.dilate(mask, np.ones((7, 7), np.uint8)) > mask
            inner = mask > cv2.dilate(1 - mask, np.ones((3, 3), np.uint8))
            inner = inner if inner.any() else one.mask
            # The median, because a neighbour may have the colour of the object.
            gap = smooth[rim] - np.median(smooth[inner], 0)
            faint += np.median(np.linalg.norm(gap, axis=-1)) < 25
            total += 1
    assert faint < 0.02 * total


def test_colour_and_texture_do_not_predict_the_class(scenes):
    features, classes = [], []
    for image, instances in scenes:
        for one in instances:
            inner = cv2.erode(one.mask.astype(np.uint8), np.ones((3, 3))) > 0
            if not one.crowd and inner.sum() > 20:
                pixels = image[inner] / 255
                features.append(np.concatenate((pixels.mean(0), pixels.std(0))))
                classes.append(one.label)
    features, classes = np.array(features), np.array(classes)
    features = (features - features.mean(0)) / features.std(0)
    features = np.hstack((features, features**2, np.ones((len(features), 1))))
    half = len(classes) // 2
    weights, *_ = np.linalg.lstsq(features[:half], np.eye(5)[classes[:half]])
    accuracy = np.mean((features[half:] @ weights).argmax(1) == classes[half:])
    # Chance level of five classes is 0.2; four standard errors of 380 guesses are 0.08.
    assert half > 350
    assert accuracy < 0.28
