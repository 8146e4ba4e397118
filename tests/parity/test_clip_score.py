"""CLIP's score of images and prompts, by a small random model that transformers writes."""

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from memattn_jax import InputError
from memattn_jax.checkpoints.clip import END, clip_tokenizer
from memattn_jax.evaluation.clip_score import ClipScore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer(END)
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text | heads, vision_config=vision | heads, projection_dim=8))
    with torch.no_grad():
        for parameter in model.parameters():  # weights large enough that prompts and images differ
            parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)
    return folder


def test_it_is_the_cosine_of_image_and_prompt(folder):
    images = np.random.default_rng(0).integers(0, 255, (12, 20, 20, 3)).astype(np.uint8)
    prompts = ["a cat", "a longer line of words", "dog", "the sea", "0", "b"] * 2
    ours = ClipScore(folder)(images, prompts)
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    wanted = []
    for image, prompt in zip(images, prompts, strict=True):
        inputs = processor(text=[prompt], images=[image], return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        wanted.append(max(0.0, float(torch.cosine_similarity(output.image_embeds, output.text_embeds))))
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    assert 0 < sum(score > 0 for score in wanted) < len(wanted)


def test_another_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="--clip"):
        ClipScore(tmp_path)
