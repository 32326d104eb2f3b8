from __future__ import annotations

from typing import get_args

import pytest

from shared.entity_types import CORPUS_TYPES, DEFAULTS, TYPES, definitions, get
from shared.messages import LANGS, MAX_TYPES, Lang


@pytest.mark.parametrize("lang", get_args(Lang))
def test_names_are_unique_and_every_type_is_defined(lang: Lang) -> None:
    names = [type_.name(lang) for type_ in TYPES.values()]
    assert len(set(names)) == len(names)
    assert all(name and name == name.strip() and "\n" not in name for name in names)
    assert all(type_.definition(lang).endswith((".", "。")) for type_ in TYPES.values())


def test_the_key_names_the_type() -> None:
    assert all(type_.key == key for key, type_ in TYPES.items())


@pytest.mark.parametrize("lang", get_args(Lang))
def test_defaults_exist(lang: Lang) -> None:
    assert 0 < len(DEFAULTS[lang]) <= MAX_TYPES
    assert len(set(DEFAULTS[lang])) == len(DEFAULTS[lang])
    assert all(get(key).key == key for key in DEFAULTS[lang])


@pytest.mark.parametrize("corpus", CORPUS_TYPES)
def test_every_label_of_a_corpus_has_a_type_of_its_own(corpus: str) -> None:
    keys = list(CORPUS_TYPES[corpus].values())
    assert set(keys) <= set(TYPES)
    assert len(set(keys)) == len(keys)


def test_an_unknown_type_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match="disease"):
        get("no such type")


def test_each_type_is_defined_in_both_languages() -> None:
    told = {(segment.document_id, segment.lang): segment for segment in definitions()}
    assert told.keys() == {(key, lang) for key in TYPES for lang in LANGS}
    for (key, lang), segment in told.items():
        assert segment.text == get(key).definition(lang)
        assert (segment.start, segment.end) == (0, len(segment.text))
