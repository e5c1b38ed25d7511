from __future__ import annotations

import pytest

from hssl.config import PRESETS, NetworkConfig, PretrainConfig


@pytest.mark.parametrize("preset", PRESETS)
def test_network_presets(preset):
    network = NetworkConfig.model_validate(preset)
    assert network == NetworkConfig.model_validate(PRESETS[preset])
    assert PretrainConfig.load(network=preset).network == network
    assert network.encoder == ("residual" if preset == "large" else "plain")


def test_lists_of_a_network_are_filled_in():
    network = NetworkConfig(features=(4, 8, 8, 8))
    assert network.blocks == (2, 2, 2, 2)
    assert network.decoder_convs == (2, 2, 2)
    assert network.kernels == ((3, 3),) * 4
    assert network.strides == ((1, 1), (2, 2), (2, 2), (2, 2))
    assert NetworkConfig() == NetworkConfig.model_validate("small")
