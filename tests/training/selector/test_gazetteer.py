from training.data.corpora import Example, GoldMention
from training.selector.gazetteer import LEAST, MOST_PIECES, count


def example(text, *mentions, types=("protein",)):
    found = tuple(
        GoldMention(text.index(words), text.index(words) + len(words), type_ or types[0]) for words, type_ in mentions
    )
    return Example("x", text, "en", found, types)


def test_mentions_are_distinguished_from_the_same_words_elsewhere():
    texts = [example("The CD28 gene binds.", ("CD28", "protein")), example("A CD28 T cell; cd28 again.")]
    gazetteer = count({"one": texts})
    assert gazetteer.counts("protein", "CD28") == (1, 2)
    # Too rare, and never a mention.
    assert gazetteer.counts("protein", "gene") == (0, 0)
    assert gazetteer.counts("dna", "CD28") == (0, 0)


def test_frequent_words_are_counted_without_being_mentions():
    texts = [example("the T cell line")] * LEAST + [example("a T cell")]
    gazetteer = count({"one": texts})
    for words, times in (("T cell", LEAST + 1), ("cell line", LEAST), ("the T cell line", LEAST), ("a T", 0)):
        assert gazetteer.counts("protein", words) == (0, times)


def test_a_span_that_is_annotated_twice_counts_once():
    text = example("p53 and", ("p53", "protein"), ("p53", "protein"))
    assert count({"one": [text]}).counts("protein", "p53") == (1, 0)


def test_mentions_may_be_longer_than_other_counted_words():
    words = " ".join(f"w{i}" for i in range(MOST_PIECES + 6))
    gazetteer = count({"one": [example(f"so {words} there", (words, "protein"))]})
    assert gazetteer.counts("protein", words) == (1, 0)


def test_a_type_of_two_corpora_has_the_words_of_both():
    one = [example("p53 is", ("p53", "protein"))]
    two = [example("p53 is", types=("protein", "dna"))] * LEAST
    gazetteer = count({"one": one, "two": two})
    assert gazetteer.counts("protein", "p53") == (1, LEAST)
    assert gazetteer.counts("dna", "p53") == (0, LEAST)
