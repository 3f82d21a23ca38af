"""Texts: two parts that share nothing, enough items in each, and nothing used twice."""

import re

import numpy as np
import pytest

from kerf.core.errors import InputError
from kerf.data import corpora, datasets, overlap, segmentation
from kerf.data.bundled import TEXTS

NAMES = tuple(TEXTS)


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_share_no_document_and_cover_all(name):
    calibration, evaluation = (corpora.documents(name, part) for part in corpora.PARTS)
    assert not set(calibration) & set(evaluation)
    assert sorted(calibration + evaluation) == sorted(corpora._all_documents(name))
    assert min(len(calibration), len(evaluation)) >= 40


def test_the_part_of_a_document_does_not_depend_on_the_others(tmp_path):
    lines = [f"Document number {i}." for i in range(50)]
    for kept in (lines, lines[::-1], lines[::3]):
        (tmp_path / "t.txt").write_text("\n".join(kept))
        found = set(corpora.documents(str(tmp_path / "t.txt"), "calibration"))
        assert found == {line for line in kept if corpora.part_of(line) == "calibration"}


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_shares_no_text_with_calibration(name):
    calibration = corpora.calibration_sentences(name, 1200, seed=0)
    evaluation, numbers = corpora.evaluation_sentences(name, 400)
    assert len(evaluation) == len(set(evaluation)) == len(numbers) == 400
    overlap.check_overlap(calibration, evaluation)
    words = [f" {' '.join(re.findall(r'[a-z0-9_]+', text.lower()))} " for text in evaluation]
    grams = {
        tuple(text.split()[i : i + 12]) for text in words for i in range(len(text.split()) - 11)
    }
    for text in calibration:
        found = re.findall(r"[a-z0-9_]+", text.lower())
        assert not any(tuple(found[i : i + 12]) in grams for i in range(len(found) - 11))


@pytest.mark.parametrize("name", NAMES)
def test_a_sentence_comes_from_the_document_it_names(name):
    documents = corpora.documents(name, "evaluation")
    assert all(
        text in documents[number]
        for text, number in zip(*corpora.evaluation_sentences(name, 400), strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_calibration_text_overlaps_no_human_pair_and_no_passage_of_the_other_source(name):
    calibration = corpora.calibration_sentences(name, 1200, seed=0)
    for items, *_ in datasets.human_pairs().values():
        overlap.check_overlap(calibration, items)
    if name == "news":
        overlap.check_overlap(
            calibration, [row[1] for row in corpora.query_passage_pairs("wiki", "evaluation")[:500]]
        )


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_gives_the_same_sentences_again_and_another_seed_others(seed):
    first = corpora.calibration_sentences("news", 64, seed)
    assert (
        first
        == corpora.calibration_sentences("news", 64, seed)
        != corpora.calibration_sentences("news", 64, seed + 1)
    )
    assert len(set(first)) == 64
    assert corpora.evaluation_sentences("news", 64, seed) == corpora.evaluation_sentences(
        "news", 64, seed
    )
    assert corpora.evaluation_sentences("news", 64, seed) != corpora.evaluation_sentences(
        "news", 64, seed + 1
    )


LONG = "Nobody in the village had ever seen so many birds at once over the harbour before the storm came in."
WORDS = LONG.split()


@pytest.mark.parametrize(
    "calibration",
    [
        LONG,
        LONG.upper(),
        " ".join(WORDS[3:15]),
        f"And so, {' '.join(WORDS[3:15])}, it seems.",
        " ".join(WORDS[4:11]),
    ],
    ids=[
        "copied",
        "other case",
        "12 words of it",
        "12 words inside another",
        "a whole text of 7 words inside it",
    ],
)
def test_overlapping_text_is_refused(calibration):
    with pytest.raises(InputError, match="overlap"):
        overlap.check_overlap(
            ["Something else entirely, as it should be.", calibration], ["Another text.", LONG]
        )


@pytest.mark.parametrize(
    "calibration", [f"And so, {' '.join(WORDS[3:14])}, it seems.", "birds over the village", "..."]
)
def test_eleven_shared_words_or_the_same_words_apart_pass(calibration):
    overlap.check_overlap([calibration], [LONG, "!"])


@pytest.mark.parametrize(
    ("ask", "parameter"),
    [
        (lambda n: corpora.calibration_sentences("news", n, 0), "calibration.samples"),
        (lambda n: corpora.evaluation_sentences("news", n), "evaluation.sentences"),
        (lambda n: datasets.retrieval("wiki", n).queries, "evaluation.queries"),
    ],
    ids=["calibration", "evaluation", "queries"],
)
@pytest.mark.parametrize("count", [0, 10**6])
def test_more_than_there_is_is_refused_with_how_many_there_are(ask, parameter, count):
    with pytest.raises(InputError, match=rf"^{parameter} = {count}: [12] to \d\d\d+, ") as caught:
        ask(count)
    most = int(str(caught.value).split(" to ")[1].split(",")[0])
    assert ask(most)
    with pytest.raises(InputError):
        ask(most + 1)


def test_cloze_pairs_are_consecutive_words_of_evaluation_articles():
    rows = corpora.query_passage_pairs("wiki", "evaluation")[:500]
    queries, passages, numbers = zip(*rows, strict=True)
    documents = [" ".join(document.split()) for document in corpora.documents("wiki", "evaluation")]
    assert len(queries) == len(set(passages)) == len(numbers) == 500
    for query, passage, number in zip(queries, passages, numbers, strict=True):
        assert (len(query.split()), len(passage.split())) == (
            corpora.QUERY_WORDS,
            corpora.PASSAGE_WORDS,
        )
        assert f"{query} {passage}" in documents[number]
    assert len(set(numbers)) >= 40


@pytest.mark.parametrize(
    ("name", "pairs", "highest"), [("lee", 1225, 1), ("wordsim", 353, 10), ("simlex", 999, 10)]
)
def test_human_pairs_are_all_there_on_their_scale(name, pairs, highest):
    items, left, right, scores = datasets.human_pairs()[name]
    assert len(left) == len(right) == len(scores) == pairs
    assert all(items[a] != items[b] for a, b in zip(left, right, strict=True)) or name == "wordsim"
    assert (
        np.isfinite(scores).all()
        and 0 <= min(scores) < 0.3 * highest
        and 0.8 * highest < max(scores) <= highest
    )


def test_a_text_file_with_one_document_a_line_works(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(
        "\n\n".join(f"  Sentence {i} is about the number {i * i}, é.  " for i in range(40)), "utf-8"
    )
    assert len(corpora._all_documents(str(path))) == 40
    found = corpora.calibration_sentences(str(path), 5, seed=0)
    assert all(
        sentence.startswith("Sentence") and corpora.part_of(sentence) == "calibration"
        for sentence in found
    )
    assert len(corpora.evaluation_sentences(str(path), 5)[0]) == 5


@pytest.mark.parametrize(
    "content", [bytes(range(256)), b"\x1f\x8b\x08", b"PAR1\0\n"], ids=["bytes", "gzip", "nul"]
)
def test_a_binary_file_is_refused(tmp_path, content):
    (tmp_path / "binary").write_bytes(content)
    with pytest.raises(InputError, match=r"^texts = .*binary.*: a UTF-8 text file"):
        corpora.documents(str(tmp_path / "binary"), "calibration")


@pytest.mark.parametrize("name", ["new", "", "/", "absent.txt", "a\0b"])
def test_an_unknown_text_is_refused_with_the_known_names(name):
    with pytest.raises(InputError, match="^texts = .*news"):
        corpora.documents(name, "calibration")


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ("One sentence that is long enough. Another sentence that is long enough!", 2),
        ("Too short. A sentence that is long enough for it.", 1),
        ("word " * 100 + "end.", 0),
        ("It rose 3.5 per cent in the last of the quarters.", 1),
    ],
)
def test_sentences_have_30_to_300_characters(document, found):
    assert len(corpora.sentences(document)) == found


SCRIPTS = {  # two sentences of 30 columns or more, and where the language writes them a question
    "Chinese": "今天天气很好，我们决定一起去公园散步看花。{n}号公园里的花都已经开了，你想不想一起来看一看？",
    "Japanese": "吾輩は猫である、名前はまだ無いが元気である。{n}番目の家で生れたかとんと見当がつかぬのである。",
    "Korean": "오늘은 날씨가 아주 좋아서 우리는 {n}번 공원에 갔습니다. 당신도 우리와 함께 공원에 가고 싶습니까?",
    "Russian": "В {n} г. он родился в маленьком городе у моря. Ты придёшь к нам сегодня вечером или завтра утром?",
    "Greek": "Ο καιρός είναι πολύ καλός σήμερα το πρωί στο σπίτι {n}. Θα έρθεις κι εσύ μαζί μας σήμερα στο πάρκο;",
    "Hindi": "आज मौसम बहुत अच्छा है और हम सब {n} नंबर पार्क में टहलने गए। क्या तुम भी आज शाम हमारे साथ वहाँ घूमने आओगे?",
    "Bengali": "আজ আবহাওয়া খুব ভালো এবং আমরা সবাই {n} নম্বর পার্কে বেড়াতে গিয়েছিলাম। তুমি কি আজ বিকেলে আমাদের সাথে সেখানে বেড়াতে আসবে?",
    "Arabic": "الطقس جميل جدا اليوم وقد ذهبنا معا إلى الحديقة رقم {n}. هل ستأتي معنا غدا إلى البيت الكبير في المدينة؟",
    "Urdu": "آج موسم بہت اچھا ہے اور ہم سب پارک نمبر {n} میں گئے تھے۔ کیا تم بھی آج شام ہمارے ساتھ وہاں چلو گے؟",
    "Hebrew": "מזג האוויר היום יפה מאוד והלכנו ביחד לפארק מספר {n}. האם תבוא איתנו מחר אל הבית הגדול שבעיר?",
    "Amharic": "ዛሬ አየሩ በጣም ጥሩ ስለሆነ ሁላችንም ወደ መናፈሻ ቁጥር {n} ሄድን። ነገ ከእኛ ጋር ወደ ትልቁ ቤት ትመጣለህ ወይስ አትመጣም?",
    "Armenian": "Այսօր եղանակը շատ լավն է, և մենք գնացինք {n} այգին։ Վաղը մենք կրկին կգնանք մեծ տունը մեր քաղաքում։",
    "Thai": "วันนี้อากาศดีมากเราจึงไปสวนสาธารณะหมายเลข {n} กับเพื่อน พรุ่งนี้เราจะไปที่บ้านหลังใหญ่ในเมืองอีกครั้งหนึ่ง",
    "Burmese": "ဒီနေ့ရာသီဥတုကောင်းလို့ ကျွန်တော်တို့အားလုံးပန်းခြံ {n} ကိုသွားခဲ့ကြတယ်။ မနက်ဖြန် ကျွန်တော်တို့ အိမ်ကြီးကို ထပ်သွားကြမယ်။",
    "German": "Gestern kam er sehr spät nach Hause, etwa um {n} Uhr. „Übermorgen muss er wieder abreisen“, sagte sie leise.",
    "Spanish": "Ayer llegó muy tarde a la casa número {n} del pueblo. ¿Ángel vendrá con nosotros mañana por la mañana?",
}


@pytest.mark.parametrize("language", SCRIPTS)
def test_every_script_has_sentences_samples_and_passages(language, tmp_path):
    documents = [
        " ".join(SCRIPTS[language].format(n=100 * i + j) for j in range(9)) for i in range(12)
    ]
    assert all(len(corpora.sentences(SCRIPTS[language].format(n=n))) == 2 for n in (7, 1990))
    path = tmp_path / "own.txt"
    path.write_text("\n".join(documents), "utf-8")
    assert len(corpora.calibration_sentences(str(path), 20, 0)) == 20
    for query, passage, number in corpora.query_passage_pairs(str(path), "evaluation"):
        own = "".join(corpora.documents(str(path), "evaluation")[number].split())
        assert "".join((query + passage).split()) in own and len(passage) > len(query) > 10


@pytest.mark.parametrize("language", SCRIPTS)
def test_text_of_any_script_that_stands_in_both_parts_is_found(language):
    one, other = (SCRIPTS[language].format(n=n) for n in (1, 2))
    assert overlap.without_overlap([f"{other} {one}"], [one]) == []
    assert overlap.without_overlap([one[: len(one) // 4]], [other[len(other) // 2 :]])


def test_a_sentence_of_a_dense_script_is_short_in_characters():
    assert (
        segmentation.columns("今天天气") == 8
        and segmentation.columns("क्या") == 3
        and segmentation.columns("cafe\u0301") == 4
    )


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_an_end_of_line_divides_documents(mark, tmp_path):
    (tmp_path / "own.txt").write_bytes(
        f"\ufeffOne document{mark}and its second half.\r\nAnother one.\rA third.\n".encode()
    )
    found = corpora._all_documents(str(tmp_path / "own.txt"))
    assert found == [f"One document{mark}and its second half.", "Another one.", "A third."]


@pytest.mark.parametrize(
    "content", ["A text.\n".encode("utf-16"), b"a lone surrogate \xed\xa0\x80\n", b"caf\xe9\n"]
)
def test_bytes_that_are_not_utf_8_are_refused(content, tmp_path):
    (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"^texts = .*own.txt.*: a UTF-8 text file"):
        corpora.digest(str(tmp_path / "own.txt"))


def test_a_name_that_cannot_be_written_down_is_refused(tmp_path):
    (tmp_path / "\udcff.txt").write_text("A document.\n")
    for name in (str(tmp_path / "\udcff.txt"), "\ud800", "news\udfff"):
        with pytest.raises(InputError, match="^texts = ") as refused:
            corpora.digest(name)
        assert str(refused.value).encode()


def test_one_giant_line_is_refused_with_what_it_has(tmp_path):
    (tmp_path / "own.txt").write_text("A sentence that is long enough for all of it. " * 20000)
    part = corpora.part_of(corpora._all_documents(str(tmp_path / "own.txt"))[0])
    ask = (
        corpora.evaluation_sentences
        if part == "calibration"
        else lambda name, n: corpora.calibration_sentences(name, n, 0)
    )
    with pytest.raises(InputError, match=r"has 0 in documents of its part$"):
        ask(str(tmp_path / "own.txt"), 10)
