"""The recipe of the golden tensors reproduces the values stated in its README."""

import numpy as np

from tests.rules import normal, rule_tensor, uniform


def test_normal_stream_matches_the_stated_head() -> None:
    assert np.allclose(normal("input", (4,)), [0.4162847, -0.1144517, 1.158074, 0.2703632], atol=1e-6)


def test_uniform_stream_matches_the_stated_head() -> None:
    assert np.allclose(uniform("image", (4,), 0, 1), [0.1201476, 0.01576199, 0.9187053, 0.8164896], atol=1e-6)


def test_parameter_rules_match_the_stated_heads() -> None:
    assert np.allclose(rule_tensor("norm.weight", (96,))[:4], [0.9215701, 1.028201, 0.9779551, 0.9874415], atol=1e-6)
    qkv = rule_tensor("blocks.0.0.attn.qkv.weight", (288, 96)).reshape(-1)[:4]
    assert np.allclose(qkv, [0.03103799, -0.02646706, 0.1376696, 0.1292331], atol=1e-6)
