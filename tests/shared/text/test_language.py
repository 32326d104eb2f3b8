from __future__ import annotations

import pytest

from shared.text.language import detect


@pytest.mark.parametrize(
    "text",
    [
        "患者因胸痛入院。",
        "予aspirin 100mg qd、clopidogrel 75mg qd、atorvastatin 20mg qn口服，复查ECG示ST段回落。",
        "肺ca术后",
        "EGFR突变",
        "双肺 CT：GGO，考虑 COVID-19。",
    ],
)
def test_chinese(text: str) -> None:
    assert detect(text) == "zh"


@pytest.mark.parametrize(
    "text",
    [
        "The patient was admitted with chest pain.",
        "Extracts of huangqi (黄芪) were given to mice with induced colitis for two weeks.",
        "IL-2",
    ],
)
def test_english(text: str) -> None:
    assert detect(text) == "en"


@pytest.mark.parametrize("text", ["", " \n", "37.5 / 120", "😀 → ±", "。，"])
def test_text_without_letters_is_english(text: str) -> None:
    assert detect(text) == "en"
