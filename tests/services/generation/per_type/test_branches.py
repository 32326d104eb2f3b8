"""Candidates beyond the greedy line against plain passes over the whole sequence."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.generation.config import GenerationConfig
from services.generation.engine import TagRequest
from services.generation.per_type.engine import PerTypeEngine
from shared import entity_types
from shared.messages import Segment
from shared.model.attention import use_packed_attention
from shared.model.body import Packed
from shared.text.per_type import Action, PerTypeTokens, State
from shared.text.pieces import split
from tests.support.tiny import make_tiny_model

TYPES = ("protein", "disease", "cell_line")
TEXTS = (
    "Activation of the CD28 surface receptor.",
    "IL-2 gene expression [1] in Jurkat T cells",
    "a",  # one piece: nothing is left to draft behind the first action
    "  two  spaces\tand a tab\nand \\ lines ] [ ",
    "右肺下叶腺癌 with EGFR 突变",
)
LONGEST = 6


@pytest.fixture(scope="module", params=[(0, 512), (1, 512), (3, 24)], ids=["0", "1", "3-window"])
def folder(request, tmp_path_factory):
    seed, window = request.param
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=seed, window=window)


def candidates(folder, **changes):
    """Of each text and type the candidates beyond the greedy line, with their log-probabilities."""
    model = use_packed_attention(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    engine = PerTypeEngine(
        Packed(model),
        PerTypeTokens(AutoTokenizer.from_pretrained(folder)),
        GenerationConfig(branch_pieces=LONGEST, **changes),
    )
    segments = [Segment(document_id="d", index=i, start=0, end=len(t), text=t, lang="en") for i, t in enumerate(TEXTS)]
    return {
        (line.segment.text, key): {(a.start, a.end): a.logprob for a in line.alternatives if a.type == key}
        for line in engine.tag([TagRequest(segment, TYPES) for segment in segments])
        for key in TYPES
    }


@pytest.mark.parametrize("floor", [0.001, 0.02])
def test_candidates_do_not_depend_on_how_many_tokens_are_looked_at_together(folder, floor):
    """Whoever looks at few tokens stops where no closing further on can count; of many all are looked at."""
    few, many = (candidates(folder, candidate_floor=floor, lookahead=lookahead) for lookahead in (1, 256))
    assert any(few.values())
    assert few.keys() == many.keys()
    for key, found in few.items():
        assert found == pytest.approx(many[key], abs=1e-4)


class Plain:
    """A line of one type, with a forward pass of the whole sequence for every decision."""

    def __init__(self, folder, text, key):
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokens = PerTypeTokens(AutoTokenizer.from_pretrained(folder))
        self.pieces = split(text)
        self._prompt = [*self._tokens.prefix(self.pieces), *self._tokens.header(entity_types.get(key).name("en"))]

    @torch.inference_mode()
    def behind(self, actions):
        """The state behind some actions, and the log-probabilities of what may follow."""
        state = State(len(self.pieces))
        for action in actions:
            state.apply(action)
        options = state.admissible()
        if not options:
            return state, {}
        ids = self._prompt + [token for _, some in self._tokens.steps(self.pieces, actions) for token in some]
        after_open = bool(actions) and actions[-1] is Action.OPEN
        first = [self._tokens.action(self.pieces, state.copied, o, after_open=after_open)[0] for o in options]
        logits = self._model(torch.tensor([ids])).logits[0, -1, first]
        return state, dict(zip(options, torch.log_softmax(logits.double(), -1).tolist(), strict=True))

    def line(self):
        """The greedy actions, and what each was chosen from."""
        actions, chosen = [], []
        while (found := self.behind(actions)[1]) and actions != [Action.ABSENT]:
            chosen.append(found)
            actions.append(max(found, key=found.__getitem__))
        return actions, chosen

    def closed(self, actions, path):
        """The likeliest closing of a mention that was opened last: its range, and the log-probability."""
        actions, best = list(actions), (None, -math.inf)
        while True:
            state, found = self.behind(actions)
            if Action.CLOSE in found:
                span = state.open[-1], state.copied
                best = max(best, (span, path + found[Action.CLOSE]), key=lambda b: b[1])
            if state.copied - state.open[-1] == LONGEST or Action.COPY not in found:
                return best
            if state.copied > state.open[-1]:  # the first piece of a mention is given
                path += found[Action.COPY]
            actions.append(Action.COPY)


def beyond(plain, floor):
    """What the greedy line does not have but gives the floor: by a bracket that it could have said elsewhere.

    None where the type is absent.
    """
    actions, chosen = plain.line()
    if actions == [Action.ABSENT]:
        return None
    absent = chosen[0].pop(Action.ABSENT)
    chosen[0] = {action: logprob - math.log1p(-math.exp(absent)) for action, logprob in chosen[0].items()}
    found, own, opened, state = {}, set(), [], State(len(plain.pieces))
    for at, (action, decided) in enumerate(zip(actions, chosen, strict=True)):
        others = {other: logprob for other, logprob in decided.items() if other is not action and logprob >= floor}
        ways = []
        if Action.CLOSE in others:
            ways.append(((state.open[-1], state.copied), opened[-1] + others[Action.CLOSE]))
        if Action.OPEN in others:
            ways.append(plain.closed([*actions[:at], Action.OPEN], others[Action.OPEN]))
        for span, logprob in ways:
            found[span] = max(found.get(span, -math.inf), logprob)
        if action is Action.OPEN:
            opened.append(decided[action])
        elif action is Action.CLOSE:
            opened.pop()
        if (span := state.apply(action)) is not None:
            own.add(span)
    return {
        (plain.pieces.cores[start], plain.pieces.ends[end - 1]): logprob
        for (start, end), logprob in found.items()
        if logprob >= floor and (start, end) not in own
    }


def test_candidates_are_as_probable_as_the_passes_of_their_own_say(folder):
    floor = 0.02
    seen = 0
    for (text, key), found in candidates(folder, candidate_floor=floor).items():
        expected = beyond(Plain(folder, text, key), math.log(floor))
        if expected is None:
            continue
        # Whether what lies on the floor counts is a matter of rounding.
        clear = [{s: p for s, p in probable.items() if p > math.log(floor) + 1e-3} for probable in (found, expected)]
        assert clear[0] == pytest.approx(clear[1], abs=1e-3)
        seen += len(clear[1])
    assert seen
