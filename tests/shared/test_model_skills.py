"""What names tell of models."""

import pytest

from byoai_shared.model_skills import Skill, capabilities, model_for_text, skill_of


@pytest.mark.parametrize(
    ("name", "skill"),
    [
        ("llama3.2:3b", Skill.TEXT),
        ("meta-llama/Llama-3.1-8B-Instruct", Skill.TEXT),
        ("nomic-embed-text", Skill.EMBEDDINGS),
        ("mxbai-EMBED-large", Skill.EMBEDDINGS),
        ("BAAI/bge-m3", Skill.EMBEDDINGS),
        ("all-minilm:l6", Skill.EMBEDDINGS),
        ("intfloat/e5-large", Skill.EMBEDDINGS),
        ("BAAI/bge-reranker-v2-m3", Skill.RERANKING),
        ("whisper-large-v3", Skill.AUDIO),
        ("kokoro", Skill.AUDIO),
        ("flux.1-dev", Skill.IMAGES),
    ],
)
def test_the_skill_that_a_name_tells(name: str, skill: Skill) -> None:
    assert skill_of(name) is skill


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ((), ()),
        (("llama3",), ("text-generation",)),
        (("nomic-embed-text",), ("embeddings",)),
        (("llama3", "bge-m3"), ("text-generation", "embeddings")),
    ],
)
def test_capabilities(models: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert capabilities(models) == expected


@pytest.mark.parametrize(
    ("models", "wanted", "expected"),
    [
        (["nomic-embed-text", "llama3.2:3b"], [], "llama3.2:3b"),
        (["nomic-embed-text", "llama3.2:3b"], ["nomic-embed-text"], "llama3.2:3b"),
        (["a", "b"], ["b"], "b"),
        (["bge-m3"], [], "bge-m3"),
        (["bge-m3", "nomic-embed-text"], ["nomic-embed-text"], "nomic-embed-text"),
    ],
)
def test_a_text_request_without_a_name_gets_a_model_that_writes_text(
    models: list[str], wanted: list[str], expected: str
) -> None:
    assert model_for_text(models, wanted) == expected
