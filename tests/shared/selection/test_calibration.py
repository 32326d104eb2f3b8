import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.selection.calibration import Calibration, CalibrationError, Judgement, Scaling, TypeCalibration
from shared.selection.selector_folder import CALIBRATION_FILE, calibration_file
from shared.settings import Settings

probabilities = st.floats(0, 1)
scalings = st.builds(Scaling, slope=st.floats(0, 50), intercept=st.floats(-50, 50))
calibrations = st.builds(
    Calibration,
    types=st.dictionaries(
        st.sampled_from(["protein", "disease", "symptom"]),
        st.builds(
            TypeCalibration, greedy=scalings, beyond=scalings, threshold=probabilities, fitted_on=st.integers(0, 10**6)
        ),
    ),
)


@given(probabilities)
def test_unfitted_keeps_a_greedy_confidence(confidence):
    assert Calibration.default().probability("protein", Judgement(confidence, True)) == pytest.approx(
        confidence, abs=1e-5
    )
    assert Calibration.default().threshold("protein") == 0.5


def test_unfitted_demands_more_of_spans_beyond_the_greedy_line():
    calibration = Calibration.default()
    assert (
        calibration.probability("protein", Judgement(0.85, False))
        < 0.5
        < calibration.probability("protein", Judgement(0.9, False))
    )


@given(scalings, probabilities, probabilities)
def test_scaling_gives_probabilities_and_keeps_the_ranking(scaling, one, other):
    low, high = sorted((one, other))
    assert 0.0 <= scaling.probability(Judgement(low, True)) <= scaling.probability(Judgement(high, True)) <= 1.0


def test_each_type_has_its_own_parameters():
    fitted = TypeCalibration(greedy=Scaling(intercept=1.0), beyond=Scaling(intercept=-1.0), threshold=0.4)
    calibration = Calibration(types={"protein": fitted})
    assert calibration.threshold("protein") == 0.4
    assert calibration.probability("protein", Judgement(0.5, True)) == pytest.approx(0.731, abs=1e-3)
    assert calibration.probability("protein", Judgement(0.5, False)) == pytest.approx(0.269, abs=1e-3)
    assert calibration.probability("disease", Judgement(0.5, True)) == pytest.approx(0.5)


@given(calibrations)
def test_save_and_load_are_inverse(tmp_path_factory, calibration):
    path = tmp_path_factory.mktemp("calibration") / CALIBRATION_FILE
    calibration.save(path)
    assert Calibration.load(path) == calibration


def test_an_adapter_without_a_calibration_file_gets_the_default(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    own = Settings(adapter=str(tmp_path), selector="")
    none = Settings(adapter="", selector="")
    assert Calibration.for_settings(own) == Calibration.for_settings(none) == Calibration.default()
    fitted = Calibration(types={"protein": TypeCalibration(threshold=0.3)})
    fitted.save(tmp_path / CALIBRATION_FILE)
    assert Calibration.for_settings(own) == fitted


def test_a_selector_has_a_calibration_for_each_generator(tmp_path):
    for name in ("one", "other", "selector"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(name)
    one, other = (Settings(adapter=str(tmp_path / n), selector=str(tmp_path / "selector")) for n in ("one", "other"))
    fitted = Calibration(types={"protein": TypeCalibration(threshold=0.3)})
    fitted.save(calibration_file(one))
    assert Calibration.for_settings(one) == fitted
    with pytest.raises(CalibrationError, match="`biobracket train calibration`, or set BIOBRACKET_SELECTOR"):
        Calibration.for_settings(other)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("not json", "file"),
        ('{"version": 2}', "version"),
        ('{"types": {"protein": {"threshold": 1.5}}}', "types.protein.threshold"),
        ('{"types": {"protein": {"greedy": {"slope": -1}}}}', "types.protein.greedy.slope"),
        ('{"extra": 1}', "extra"),
    ],
)
def test_a_bad_file_is_named_with_its_field_and_a_remedy(tmp_path, content, named):
    path = tmp_path / CALIBRATION_FILE
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CalibrationError, match=rf"{CALIBRATION_FILE}: {named}: .*fit it again or delete"):
        Calibration.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CalibrationError, match=CALIBRATION_FILE):
        Calibration.load(tmp_path / CALIBRATION_FILE)


def test_a_member_that_is_none_of_ours_is_not_quoted(tmp_path):
    path = tmp_path / CALIBRATION_FILE
    path.write_text('{"患者 zq17": 1}', encoding="utf-8")
    with pytest.raises(CalibrationError, match="…: Extra inputs") as caught:
        Calibration.load(path)
    assert "zq17" not in str(caught.value)
