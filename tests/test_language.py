"""Plain technical English with American spelling in code, help, errors and documentation: what to write instead of what."""

import functools
import re
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".cfg", ".toml", ".cff", ".ipynb", ".js", ".css", ".in", ""}
LICENSE = "Permission is hereby granted"  # from here on, a quoted license
ENCODED = r"[A-Za-z0-9+/=]{200,}"  # images in notebooks, whose letters spell anything

# Home-made phrases that readers cannot look up, as regular expressions, and what to write.
PHRASES = {
    r"ways? of cutting|cutting (the )?sound": "audio alignment",
    r"inference form|form that cannot (learn|be trained)": "optimized model",
    r"uncertainty budget|frames that are sure": "early-exit threshold",
    r"(hears?|hearing) (the )?audio": "receives, processes or recognizes the audio",
    r"(?<!there )is no (audio|clip|file|folder|frame|image|mask|model|number|video)\b(?! (track|found))": "is not a ..., or: expected ..., got ...",
    r"that are no (videos|images|files)": "that are not ...",
    r"\blies (at|beside|in|next|on|there)\b": "is in, is found in",
    r"\bstands? (beside|next to|there)\b": "is next to",
    r"\bbeside\b": "next to",
    r"\bone's own\b": "your own, custom",
    r"\bwho(so)?ever\b": "a user who",
    r"\bcomes? along\b": "is bundled",
    r"\btak(e|en|es) along\b": "download, copy",
    r"what is killed goes on|\bgo(es)? on (where|from)\b": "an interrupted run resumes",
    r"claimed in silence|(pixels?|objects?|silent) claimed|claim(s|ing)? (pixels|less|silent)": "false-positive rate",
    r"\bvery (bits|bytes)\b": "bit-identical",
    r"\bwithout a word\b": "silently",
    r"\bfor ever\b": "permanently",
    r"\b(is|are) dear\b": "expensive",
    r"\bfiles? of others\b": "files that pcmanet did not write",
    r"\bshall\b": "must, or the present tense",
    r"\bdata\s+sets?\b": "dataset, as in the Hugging Face documentation",
    r"(?<!navigation\.)\bindexes\b": "indices",
    r"\d %(?=[,.;:)|]| (of|more|and|in|to|than|faster|slower)\b| \|)": "no space: 3%",
    r"\bin order of time\b": "in chronological order",
    r"\bbegun with (other|the same)\b": "created with other settings",
    r"\bin turns\b": "alternately",
    r"\bnobody can avoid\b": "unavoidable",
    r"\bonly door\b|\btwo_doors\b|\blook_around\b|\bway_on\b|\bis_of_user\b|\bteach_listening\b|\bload_whole\b": "the names of today",
}

# British endings and words, as regular expressions, and the American spelling.
BRITISH = {
    r"(col|fav|flav|hon|neighb|behavi|harb|lab|rum|vap)our\w*": "-or",
    r"(?!(?:(?:adv|exerc|prem|prom|superv|surpr|rev|dev|televis|compr|conc|prec|otherw|likew|clockw|stepw|depthw|pointw|pairw|elementw"
    r"|channelw|wise|no|po|ra|r|w|ch|bru|cru|gu|dem|disgu|enterpr|expert|franch|improv|merchand|parad|prac|prom|ris|tort|treat|anyw"
    r")i?s(e|es|ed|ing|er|ion)))[a-z]{3,}(al|an|ar|at|er|il|im|in|ol|on|or|um)is(e|es|ed|ing|er|ation)": "-ize",
    r"anal[y]s(e|ed|es|ing)(?<!analyses)": "analyze",
    r"(cent|met|fib|lit)re(s|d)?": "-er",
    r"gr[e]y\w*": "gray",
    r"(cancel|label|model|travel|signal|level|fuel|channel)l(ed|ing|er|ers)": "one l: labeled",
    r"artefacts?|catalogues?|programmes?|dialogues?": "artifact, catalog, program, dialog",
    r"licences?|defences?|offences?": "license, defense",
    r"learnt|spelt|burnt|dreamt": "learned, spelled",
    r"whilst|amongst": "while, among",
    r"judgement|ageing|fulfil|enrol|skilful": "judgment, aging, fulfill, enroll, skillful",
}


@functools.cache
def texts() -> dict[str, str]:
    """The text of each tracked file in lower case, without the licenses that are quoted and the images that are encoded in it."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    paths = [ROOT / name for name in names.split("\0") if name and name not in ("LICENSE", "tests/test_language.py")]
    return {
        str(path.relative_to(ROOT)): re.sub(ENCODED, "", path.read_text(encoding="utf-8").split(LICENSE)[0]).lower()
        for path in paths
        if path.suffix in SUFFIXES and path.is_file()
    }


def find(pattern: str) -> list[str]:
    """Where a pattern occurs: file, line, and what was found."""
    expression = re.compile(pattern)
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for name, text in texts().items()
        for match in expression.finditer(text)
    ]


@pytest.mark.parametrize("phrase", PHRASES)
def test_home_made_phrases_are_not_used(phrase):
    assert find(phrase) == [], f"write instead: {PHRASES[phrase]}"


@pytest.mark.parametrize("spelling", BRITISH)
def test_spelling_is_american(spelling):
    assert find(rf"(?<![a-z])({spelling})(?![a-z])") == [], f"write instead: {BRITISH[spelling]}"


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        (PHRASES, "A int is no clip"),
        (PHRASES, "The checkpoint lies in a folder"),
        (PHRASES, "whoever trains takes along one's own masks, for ever"),
        (BRITISH, "Normalised colours of the neighbour, modelled in grey"),
        (BRITISH, "an optimiser that recognises artefacts, initialisation in the centre"),
    ],
)
def test_the_lists_find_what_they_are_for(patterns, text):
    assert [pattern for pattern in patterns if re.search(rf"(?<![a-z])({pattern})(?![a-z])", text, re.IGNORECASE)]
