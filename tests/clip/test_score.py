"""A tiny real open_clip model: hand-computed cosines, one encoding for equal things, truncation with end of text."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from drive_vlm.clip.encoder import CONFIG_NAME, WEIGHTS_NAME, ClipEncoder, ImageError, encode_tokens
from drive_vlm.clip.score import clip_scores, cosine, mean_features, shuffled_partners

CONFIG = {
    "model_cfg": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    },
    "preprocess_cfg": {"size": 32, "resize_mode": "squash"},
}
LONG = "the ego vehicle drives straight ahead on a wet road " * 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    save_file(ClipEncoder.from_config(CONFIG).model.state_dict(), path / WEIGHTS_NAME)
    (path / CONFIG_NAME).write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def encoder(directory):
    return ClipEncoder.load(str(directory))


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    paths = []
    for index in range(4):
        path = tmp_path / f"{index}.png"
        Image.fromarray(generator.integers(0, 255, size=(40, 60, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def test_scores_equal_cosines_by_hand(encoder, pictures):
    """Against the model's own forward on full-length tokens, one sample at a time, normalised by hand."""
    import torch

    said, expected = ["a red car", "go"], ["a blue car ahead", "stop"]
    scores = clip_scores(encoder, said, expected, [[pictures[0]], [pictures[1]]])
    for i in range(2):
        with torch.no_grad():
            p, r = (encoder.model.encode_text(encoder.tokenizer([text]))[0] for text in (said[i], expected[i]))
            v = encoder.model.encode_image(encoder.preprocess(Image.open(pictures[i]))[None])[0]
        assert scores.text_text[i] == pytest.approx(float(p @ r / p.norm() / r.norm()), abs=1e-5)
        assert scores.text_image[i] == pytest.approx(float(p @ v / p.norm() / v.norm()), abs=1e-5)


def test_several_pictures_take_the_mean_direction(encoder, pictures):
    scores = clip_scores(encoder, ["a", "b"], ["c", "d"], [pictures[:3], [pictures[3]]])
    features = encoder.encode_images(pictures)
    mean = features[:3].mean(axis=0)
    text = encoder.encode_texts(["a", "b"]).features
    assert scores.text_image[0] == pytest.approx(text[0] @ mean / np.linalg.norm(mean), abs=1e-5)
    assert scores.text_image[1] == pytest.approx(text[1] @ features[3], abs=1e-5)


def test_mean_features_by_hand():
    result = mean_features(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), [2, 1])
    assert result == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))
    assert cosine(result, np.array([[1.0, 0.0], [0.0, -1.0]])) == pytest.approx([0.5**0.5, -1.0])


def test_batch_size_and_workers_change_nothing(encoder, pictures):
    texts = ["a", "a red car ahead of the bus", LONG, "go", "stop now"]
    images = [[path] for path in [*pictures, pictures[0]]]
    first = clip_scores(encoder, texts, texts[::-1], images, batch_size=1, workers=1)
    second = clip_scores(encoder, texts, texts[::-1], images, batch_size=64, workers=3)
    assert first.text_text == pytest.approx(second.text_text, abs=1e-6)
    assert first.text_image == pytest.approx(second.text_image, abs=1e-6)


def test_equal_texts_and_pictures_are_encoded_once(encoder, pictures, monkeypatch):
    copy = pictures[0].with_name("other_name.png")
    shutil.copy(pictures[0], copy)
    link = pictures[0].with_name("link.png")
    link.symlink_to(pictures[1])
    seen = {"image": 0, "text": 0}
    for kind in seen:
        original = getattr(encoder.model, f"encode_{kind}")

        def counting(batch, *args, kind=kind, original=original, **kwargs):
            seen[kind] += len(batch)
            return original(batch, *args, **kwargs)

        monkeypatch.setattr(encoder.model, f"encode_{kind}", counting)
    features = encoder.encode_images([pictures[0], copy, pictures[1], link, pictures[0], pictures[1]], batch_size=1)
    encoder.encode_texts(["red", "green", "red", "red"])
    assert seen == {"image": 2, "text": 2}
    assert (encoder.encoded_images, encoder.encoded_texts) == (2, 2)
    assert (features[[0, 2]] == features[[1, 3]]).all()
    assert (features[0] == features[4]).all() and (features[0] != features[2]).any()


def test_a_long_text_keeps_end_of_text_and_is_pooled_there(encoder):
    tokens = encoder.tokenizer([LONG])
    end = encoder.tokenizer.eot_token_id
    assert tokens.shape == (1, 77) and tokens[0, -1] == end and int(tokens[0].argmax()) == 76

    pooled = {}
    text = encoder.model.text
    handle = text.ln_final.register_forward_hook(lambda module, args, output: pooled.update(hidden=output))
    feature = encode_tokens(encoder.model, tokens)
    handle.remove()
    assert feature[0].tolist() == pytest.approx((pooled["hidden"][0, 76] @ text.text_projection).tolist(), abs=1e-6)


def test_truncated_texts_are_counted_exactly(encoder):
    fits, over = "a " * 75, "a " * 76  # 75 words + start + end fill the 77 places
    assert encoder.encode_texts(["go", fits, over, LONG, over]).truncated.tolist() == [False, False, True, True, True]
    cut = encoder.encode_texts([fits, over]).features
    assert cut[0] == pytest.approx(cut[1], abs=1e-6)


def test_leaving_the_padding_out_changes_nothing(encoder):
    tokens = encoder.tokenizer(["a red car", "!! ?! the light is green", "go"])
    trimmed, whole = encode_tokens(encoder.model, tokens), encoder.model.encode_text(tokens)
    assert (trimmed - whole).abs().max() < 1e-5
    assert encoder.model.text.attn_mask.shape == (77, 77)


@pytest.mark.parametrize("sizes", [[1, 1], [6, 6, 6], [5, 1], [3, 2, 9, 1]])
def test_shuffled_partners_never_share_the_picture(sizes):
    keys = [f"picture{i}" for i, size in enumerate(sizes) for _ in range(size)]
    np.random.default_rng(0).shuffle(keys)
    partners = [shuffled_partners(keys, seed) for seed in range(50)]
    assert all(keys[i] != keys[j] for partner in partners for i, j in enumerate(partner))
    reached = {(i, int(j)) for partner in partners for i, j in enumerate(partner)}
    if len(keys) <= 6:
        assert reached == {(i, j) for i in range(len(keys)) for j in range(len(keys)) if keys[i] != keys[j]}


def test_shuffled_partners_are_seeded_and_need_two_pictures():
    keys = [str(i) for i in range(30)]
    assert (shuffled_partners(keys, 1) == shuffled_partners(keys, 1)).all()
    assert (shuffled_partners(keys, 1) != shuffled_partners(keys, 2)).any()
    assert shuffled_partners(["a", "a"]) is None


def test_a_broken_picture_is_named(encoder, pictures):
    data = pictures[0].read_bytes()
    pictures[0].write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"0\.png: the picture cannot be decoded"):
        encoder.encode_images(pictures, workers=2)


def test_no_random_weights(tmp_path, directory, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"RN50x4 needs weights: --clip_pretrained FILE"):
        ClipEncoder.load("RN50x4")
    with pytest.raises(ValueError, match=r"no file and no tag 'nothing\.pt'"):
        ClipEncoder.load("ViT-B-32", "nothing.pt")
    with pytest.raises(ValueError, match=r"nor a model of open_clip\. Did you mean ViT-B-32"):
        ClipEncoder.load("ViT-B-33")
    shutil.copy(directory / CONFIG_NAME, tmp_path)
    with pytest.raises(ValueError, match=WEIGHTS_NAME):
        ClipEncoder.load(str(tmp_path))
    with pytest.raises(ValueError, match="has its own weights"):
        ClipEncoder.load(str(directory), "laion2b_s34b_b79k")


@pytest.mark.slow
def test_pickled_code_is_not_run(tmp_path):
    import torch

    torch.save({"state_dict": Image.Image}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be loaded"):
        ClipEncoder.load("ViT-B-32", str(tmp_path / "evil.pt"))


def test_a_local_weights_file_is_loaded(tmp_path, directory):
    """The weights of a named architecture by --clip_pretrained FILE, as torch.save writes them."""
    import open_clip
    import torch

    config = {key: value for key, value in CONFIG["model_cfg"].items() if key != "custom_text"}
    (tmp_path / "tiny-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    plain = open_clip.create_model("tiny-test", pretrained=None)
    torch.save(plain.state_dict(), tmp_path / "weights.pt")
    encoder = ClipEncoder.load("tiny-test", str(tmp_path / "weights.pt"))
    tokens = encoder.tokenizer(["a red car"])
    assert (encode_tokens(encoder.model, tokens) - plain.encode_text(tokens)).abs().max() < 1e-5
