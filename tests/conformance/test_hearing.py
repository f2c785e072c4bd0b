"""What libmtmd makes of sound against transformers: encoders whose input each side computes in its own way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mtmd
import numpy as np
import pytest
from numpy.typing import NDArray
from test_projectors import made, sound

from ggufsmith.convert.open import open_pass
from requesting import request, run

pytestmark = pytest.mark.conformance

RATE = 16000


def halved(*layers: Any) -> None:
    """Weights of convolutions in half precision, in which ggml has them."""
    for layer in layers:
        layer.weight.data = layer.weight.data.half().float()


def of_qwen2_audio(model: Any, heard: NDArray[np.float32]) -> Any:
    import transformers

    extractor, tower = transformers.WhisperFeatureExtractor(feature_size=128), model.model.audio_tower
    features = extractor(heard, sampling_rate=RATE, return_tensors="pt").input_features
    halved(tower.conv1, tower.conv2)
    return model.model.multi_modal_projector(tower(features).last_hidden_state[0])


def of_flamingo(model: Any, heard: NDArray[np.float32]) -> Any:
    import torch
    import transformers

    extractor, tower = transformers.WhisperFeatureExtractor(feature_size=128), model.model.audio_tower
    features = extractor(heard, sampling_rate=RATE, return_tensors="pt").input_features
    halved(tower.conv1, tower.conv2)
    whole = torch.ones(1, features.shape[-1], dtype=torch.long)
    return model.model.get_audio_features(features, whole).pooler_output


def of_omni(model: Any, heard: NDArray[np.float32]) -> Any:
    thinker = model.thinker.model
    tower = thinker.audio_tower
    halved(tower.conv2d1, tower.conv2d2, tower.conv2d3, tower.conv_out)
    features, mask = for_qwen3(heard)
    return thinker.get_audio_features(features, feature_attention_mask=mask).pooler_output


def of_omni2(model: Any, heard: NDArray[np.float32]) -> Any:
    """Half a minute at once, as llama.cpp encodes it, and not two seconds each."""
    import torch
    import transformers

    thinker = model.thinker.model
    tower = thinker.audio_tower
    tower.n_window = 1500
    halved(tower.conv1, tower.conv2)
    ready = transformers.WhisperFeatureExtractor(feature_size=128)(heard, sampling_rate=RATE, return_tensors="pt")
    features = ready.input_features
    whole = torch.ones(1, features.shape[-1], dtype=torch.long)
    return thinker.get_audio_features(features, feature_attention_mask=whole).pooler_output


def of_granite(model: Any, heard: NDArray[np.float32]) -> Any:
    """With the spectra of torchaudio's MelSpectrogram, as GraniteSpeechFeatureExtractor asks for them."""
    import torch
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(257, 80, 0.0, RATE / 2, RATE, norm=None, mel_scale="htk")
    window = torch.hann_window(400)
    waves = torch.stft(torch.from_numpy(heard), 512, 160, 400, window, center=True, return_complex=True)
    powers = torch.from_numpy(filters).float().T @ waves.abs() ** 2
    logs = powers.T.clip(min=1e-10).log10()
    logs = torch.maximum(logs, logs.max() - 8) / 4 + 1
    features = logs[: len(logs) // 2 * 2].reshape(1, -1, 160)
    return model.model.get_audio_features(features).pooler_output


def for_qwen3(heard: NDArray[np.float32]) -> tuple[Any, Any]:
    """Features and their mask as Qwen3ASRFeatureExtractor makes them, but with the last frame, and padding not masked.

    Frames are padded to whole seconds. llama.cpp does not take out the one more that a centred transform has, and lets
    the encoder attend to what is padded.
    """
    import torch
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(201, 128, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    waves = torch.stft(torch.from_numpy(heard), 400, 160, window=torch.hann_window(400), return_complex=True)
    logs = (torch.from_numpy(filters).float().T @ waves.abs() ** 2).clip(min=1e-10).log10()
    scaled = (torch.maximum(logs, logs.max() - 8) + 4) / 4
    features = torch.nn.functional.pad(scaled, (0, -scaled.shape[1] % 100))[None]
    return features, torch.ones(1, features.shape[-1], dtype=torch.long)


def of_qwen3(model: Any, heard: NDArray[np.float32]) -> Any:
    tower = model.model.audio_tower
    halved(tower.conv2d1, tower.conv2d2, tower.conv2d3, tower.conv_out)
    return model.model.get_audio_features(*for_qwen3(heard)).pooler_output


def of_gemma4(model: Any, heard: NDArray[np.float32]) -> Any:
    import torch

    frames = torch.from_numpy(heard[: len(heard) // 640 * 640].reshape(1, -1, 640))
    return model.model.embed_audio(frames)


# Sound, and the bound of the error. Of the first two, just under half a minute, which both encode in one piece; they
# compute spectra by ways of their own, which is not taken apart yet. llama.cpp averages pairs of frames of Voxtral,
# which transformers does not, and then stops at a count of its own.
HEARD: dict[str, tuple[Callable[[Any, NDArray[np.float32]], Any], tuple[int, ...], float]] = {
    "qwen2-audio": (of_qwen2_audio, (29 * RATE,), 1e-3),
    "audio-flamingo": (of_flamingo, (29 * RATE,), 1e-3),
    "qwen3-asr": (of_qwen3, (3 * RATE - 160, 7 * RATE, 10 * RATE), 1e-5),
    "qwen3-omni": (of_omni, (7 * RATE,), 1e-5),
    "qwen2_5-omni": (of_omni2, (29 * RATE,), 1e-3),
    "granite-speech": (of_granite, (2 * RATE, 3 * RATE + 800), 1e-5),
    "granite-speech-plus": (of_granite, (2 * RATE,), 1e-5),
    "gemma4-unified": (of_gemma4, (25 * 640, 40 * 640), 1e-5),
}


@pytest.mark.parametrize(
    ("name", "samples"), [(name, samples) for name, (_, lengths, _) in HEARD.items() for samples in lengths]
)
def test_sound_becomes_the_embeddings_of_transformers(name: str, samples: int, tmp_path: Path) -> None:
    import torch

    features, _, bound = HEARD[name]
    model, files = made(name, tmp_path / "Tiny-Fixture", "f32")
    heard = sound(samples)
    with torch.no_grad():
        theirs = features(model, heard).flatten(0, -2).numpy()
    ours = mtmd.embeddings(tmp_path / "Tiny-Fixture-F32.gguf", files["f32"], heard)
    print(name, samples, ours.shape, theirs.shape)
    assert ours.shape == theirs.shape
    error = ((ours - theirs) ** 2).sum() / (theirs**2).sum()
    print(f"{name} {samples}: {error:.2e}")
    assert error < bound


def test_what_speaks_is_left_out_with_a_note(tmp_path: Path) -> None:
    """The tensors of Qwen3-Omni's talker, and of what makes waves of its codes."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "Tiny-Fixture"
    _, files = made("qwen3-omni", folder, "f32")
    written = [tmp_path / "Tiny-Fixture-F32.gguf", files["f32"]]
    before = [path.read_bytes() for path in written]
    path = folder / "model.safetensors"
    more = dict.fromkeys(("talker.model.norm.weight", "code2wav.decoder.0.weight"))
    save_file({**load_file(path), **{name: torch.ones(8) for name in more}}, path, {"format": "pt"})
    asked = request(folder, outtype="f32", mmproj=True, mmproj_outtype="f32", outdir=tmp_path, overwrite=True)
    notes = "\n".join(open_pass(asked).notes)
    run(asked)
    assert [path.read_bytes() for path in written] == before
    assert "2 dropped: what speaks; this converts the model that writes" in notes
    assert "the encoder of images, which llama.cpp does not load beside one of sound" in notes
