from __future__ import annotations

import pytest

from hssl.config import FinetuneConfig, PretrainConfig, TrainingConfig, ViewConfig
from hssl.errors import ConfigError


@pytest.mark.parametrize(("patch", "window"), [(96, 128), (64, 88), (16, 24), (128, 176), (6, 8)])
def test_window_is_four_thirds_of_the_patch(patch, window):
    config = TrainingConfig(patch_size=patch, learning_rate=1.0)
    assert config.window == window
    assert config.window >= 4 / 3 * patch
    assert TrainingConfig(patch_size=patch, window_size=patch, learning_rate=1.0).window == patch


def test_a_bare_32_is_a_precision(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("precision: 32\n")
    assert PretrainConfig.load(path).precision == "32"
    path.write_text("precision: 16\n")
    with pytest.raises(ConfigError, match="option 'precision'"):
        PretrainConfig.load(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 2**31}, "option 'seed': should be less than 2147483648"),
        ({"view": {"elastic": 0.02}}, "view.elastic is for fine-tuning"),
    ],
)
def test_what_pretraining_cannot_do(given, message):
    with pytest.raises(ConfigError, match=message):
        PretrainConfig.load(**given)


def test_options_that_change_nothing_leave_the_fingerprint_as_it_is():
    other = PretrainConfig(workers=3, log_every=1, checkpoint_every=7, loggers=())
    assert other.fingerprint_fields() == PretrainConfig().fingerprint_fields()
    assert PretrainConfig(seed=1).fingerprint_fields() != PretrainConfig().fingerprint_fields()


def test_stages_have_their_own_views():
    assert PretrainConfig().view == ViewConfig(occlusion_ratio=0.3)
    assert FinetuneConfig(task="A").view == ViewConfig(elastic=0.02)
