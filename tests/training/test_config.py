import pytest

from training.config import CONFIGS, DEFAULT, ConfigError, GeneratorConfig, SelectorConfig


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_ours_can_be_loaded(file):
    given = ["candidates=[a.jsonl]"] if file.stem == "selector-mistakes" else []
    assert (SelectorConfig if file.stem.startswith("selector") else GeneratorConfig).load(file, given).corpora


def test_only_candidates_needs_candidates():
    with pytest.raises(ConfigError, match="only_candidates: there would be no texts"):
        SelectorConfig.load(CONFIGS / "selector-mistakes.yaml")


def test_overrides_are_yaml_and_reach_inside():
    config = GeneratorConfig.load(DEFAULT, ["minutes=3", "compile=false", "corpora.genia.share=0.1", "corpora.mine={}"])
    assert (config.minutes, config.compile) == (3.0, False)
    assert config.corpora["genia"].share == 0.1
    assert config.corpora["mine"].share is None


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("minutes=0", "minutes"),
        ("minuets=3", "minuets"),
        ("corpora.genia.share=-1", "corpora.genia.share"),
        ("corpora={}", "corpora"),
        ("corpora.mine={}", "corpora: the given shares leave nothing"),
        ("fold=0", "fold: there is no such fold"),
        ("folds=2 fold=2", "fold: there is no such fold"),
        ("scheme=question", "scheme: `question` has no F1"),
        ("export_rank=8", "export_rank: only `tuning: full`"),
    ],
)
def test_bad_values_name_the_field(override, field):
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
        GeneratorConfig.load(DEFAULT, override.split())


def test_what_is_served_is_measured_while_training():
    config = GeneratorConfig.load(DEFAULT)
    assert (config.scheme, config.measure_every > 0) == ("labelled", True)
    with pytest.raises(ConfigError, match="judge: a question has no line"):
        GeneratorConfig.load(DEFAULT, ["scheme=question", "measure_every=0", "judge=0.3"])


def test_four_bits_are_not_shared_out():
    with pytest.raises(ConfigError, match="parallel: 4-bit"):
        GeneratorConfig.load(CONFIGS / "qwen3-8b-qlora.yaml", ["parallel=fsdp"])


def test_full_tuning_has_an_export_rank():
    assert GeneratorConfig.load(DEFAULT, ["tuning=full", "export_rank=8"]).export_rank == 8


@pytest.mark.parametrize("content", [b"[1, 2]", b"a: [", b"\xff\xfe\x00", b"", b"a: 2001-99-99", b"[" * 3000])
def test_files_that_are_none(tmp_path, content):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="config"):
        GeneratorConfig.load(file)


def test_a_missing_file_names_ours(tmp_path):
    with pytest.raises(ConfigError, match="five-minutes"):
        GeneratorConfig.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("override", ["judge=0.3", "workers=2", "accumulate=2"])
def test_only_steps_of_few_shapes_are_recorded(override):
    with pytest.raises(ConfigError, match="graphs"):
        GeneratorConfig.load(DEFAULT, ["graphs=true", override])
    assert GeneratorConfig.load(DEFAULT, ["graphs=true"]).graphs


@pytest.mark.parametrize("value", ["[zq17", "2001-99-99", "[" * 3000, "*zq17"])
def test_an_override_that_is_not_yaml_is_not_quoted(value):
    with pytest.raises(ConfigError, match="set: the value of an override is not YAML") as caught:
        GeneratorConfig.load(DEFAULT, [f"minutes={value}"])
    assert "zq17" not in str(caught.value)


def test_a_member_that_is_none_of_ours_is_not_quoted():
    with pytest.raises(ConfigError) as caught:
        GeneratorConfig.load(DEFAULT, ["患者 zq17=1"])
    assert "zq17" not in str(caught.value)
