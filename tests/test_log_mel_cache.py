import numpy as np
import pytest

from modeling_pcmanet.feature_extraction_pcmanet import PCMANetFeatureExtractor
from pcmanet.dataset_scripts.log_mel_cache import LogMelCache


WAVEFORM = np.random.default_rng(0).uniform(-0.5, 0.5, 80000)


def files(folder):
    return sorted(folder.rglob("*.npy"))


def test_features_are_those_of_the_extractor_and_written_once(tmp_path):
    extractor = PCMANetFeatureExtractor()
    cache = LogMelCache(extractor, tmp_path / "cache")
    expected = extractor(WAVEFORM, 16000, num_frames=5)["input_features"]
    for _ in range(2):
        np.testing.assert_array_equal(cache(WAVEFORM, 16000, num_frames=5)["input_features"], expected)
    assert len(files(tmp_path)) == 1
    other = LogMelCache(PCMANetFeatureExtractor(), tmp_path / "cache")
    assert other(WAVEFORM, 16000, num_frames=5, return_tensors="pt")["input_features"].shape == (5, 1, 96, 64)
    assert len(files(tmp_path)) == 1 and cache.model_input_names == ["input_features"]


@pytest.mark.parametrize(
    ("waveform", "extractor", "options"),
    [
        (WAVEFORM * 0.5, {}, {"num_frames": 5}),
        (WAVEFORM.astype(np.float32), {}, {"num_frames": 5}),
        (WAVEFORM, {"log_offset": 0.02}, {"num_frames": 5}),
        (WAVEFORM, {"short_clip": "zeros"}, {"num_frames": 5}),
        (WAVEFORM, {}, {"num_frames": 4}),
        (WAVEFORM, {}, {"timestamps": np.arange(5) + 0.5, "patching": "aligned"}),
    ],
)
def test_other_sounds_and_settings_are_other_features(tmp_path, waveform, extractor, options):
    LogMelCache(PCMANetFeatureExtractor(), tmp_path)(WAVEFORM, 16000, num_frames=5)
    changed = PCMANetFeatureExtractor(**extractor)
    features = LogMelCache(changed, tmp_path)(waveform, 16000, **options)["input_features"]
    np.testing.assert_array_equal(features, changed(waveform, 16000, **options)["input_features"])
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00broken", b"\x80\x04K\x01."])
def test_a_damaged_file_is_written_again(tmp_path, content):
    cache = LogMelCache(PCMANetFeatureExtractor(), tmp_path)
    expected = cache(WAVEFORM, 16000, num_frames=5)["input_features"]
    (path,) = files(tmp_path)
    path.write_bytes(content)
    np.testing.assert_array_equal(cache(WAVEFORM, 16000, num_frames=5)["input_features"], expected)
    np.testing.assert_array_equal(np.load(path), expected)
