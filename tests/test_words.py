"""Words are numbered as the tokenizer of a checkpoint numbers them, so that no tokenizer is needed on a robot."""

from hypothesis import given, settings
from hypothesis import strategies as st

from moe_policies.pretrained import resolve_text_encoder
from moe_robot.words import LONGEST, PADDING, UNKNOWN, number_words, words

SENTENCES = ["pick up the red cube", "press the button, please", "put the block into the right-hand bin", "don't move"]
ENCODER = resolve_text_encoder("scratch", SENTENCES)
PIECES = st.sampled_from([*" ,.!?-'\t\n", "[PAD]", "[UNK]", "Red", "CUBE", "the", "don't", "ünder", "İ", "ß", "１２"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=30), st.lists(PIECES, max_size=90).map("".join)), min_size=1, max_size=4))
def test_numbers_are_those_of_the_saved_tokenizer(sentences):
    ids = number_words(sentences, ENCODER.vocabulary)
    for row, sentence in zip(ids, sentences, strict=True):
        spoken = " ".join(words(sentence))
        wanted = ENCODER.tokenizer(spoken, truncation=True, max_length=LONGEST)["input_ids"]
        assert row.tolist() == [*wanted, *[PADDING] * (len(row) - len(wanted))]


def test_a_word_that_was_never_heard_is_unknown_and_a_sentence_without_words_is_all_padding():
    vocabulary = {"go": 2}
    assert number_words(["Go, go home!", "?"], vocabulary).tolist() == [[2, 2, UNKNOWN], [PADDING] * 3]
    assert number_words([""], vocabulary).tolist() == [[PADDING]]
    assert number_words(["go " * 100], vocabulary).shape == (1, LONGEST)
