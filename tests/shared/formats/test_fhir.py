from __future__ import annotations

import base64
import json

from fhir.resources.R4B.bundle import Bundle
from hypothesis import given, settings

from shared.formats import fhir
from tests.support.annotated import ALPHABET
from tests.support.formats import document, documents, spans_of, written


@settings(deadline=None, max_examples=50)
@given(documents(ALPHABET + "\r\n\t\x00"))
def test_round_trip(made):
    content = written(fhir.write, [made])
    data = json.loads(content)["entry"][0]["resource"]["content"][0]["attachment"]["data"]
    assert base64.b64decode(data, validate=True).decode() == made.text
    bundle = Bundle.model_validate_json(content)
    observations = [entry.resource for entry in bundle.entry[1:]]
    found = set()
    for observation in observations:
        start, end, confidence = observation.component
        assert confidence.valueQuantity.value == 0.75
        assert observation.derivedFrom[0].reference == bundle.entry[0].fullUrl
        found.add((start.valueInteger, end.valueInteger, observation.code.coding[0].code))
    assert found == spans_of(made)


def test_a_mention_is_no_condition():
    bundle = Bundle.model_validate_json(written(fhir.write, [document("no asthma", [(3, 9, "disease")], "病历/1")]))
    assert [entry.resource.get_resource_type() for entry in bundle.entry] == ["DocumentReference", "Observation"]
    assert bundle.entry[1].resource.status == "preliminary"
    assert bundle.entry[1].resource.valueString == "asthma"
    assert bundle.entry[0].resource.identifier[0].value == "病历/1"
