import pytest

from benchmarks.stream import percentiles, requests_of, side, summed
from shared.messages import Document, Extraction


def test_a_segment_that_documents_repeat_counts_once():
    documents = [Document(id=str(i), text="Asthma was excluded.", lang="en", types=("disease",)) for i in range(3)]
    (request,) = requests_of(documents)
    assert request.types == ("disease",)


def test_rates_are_of_the_median_repetition():
    assert side([1.0, 2.0, 4.0], 8) == {"segments_per_s": 4.0, "min": 2.0, "max": 8.0, "seconds": [1.0, 2.0, 4.0]}


def test_stages_add_up_over_documents():
    made = [
        Extraction(
            document_id=str(i),
            text_sha256="0",
            lang="en",
            types=(),
            entities=(),
            model_revision="0",
            timings={"total": 2.0, "selection": 0.5},
        )
        for i in range(3)
    ]
    assert summed(made) == {"total": 6.0, "selection": 1.5}


def test_percentiles_lie_in_order():
    found = percentiles([float(n) for n in range(101)])
    assert found == pytest.approx({"p50": 50, "p95": 95, "p99": 99})
