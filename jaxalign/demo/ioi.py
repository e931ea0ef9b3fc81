"""Indirect-object sentences: two people, one of them gives, the other one receives.

"When Mary and John went to the store, John gave a drink to" asks for " Mary": the name that occurs
once, not the one that occurs twice (Wang et al. 2022, "Interpretability in the Wild"). The pairs of
names used for evaluation never occur together in a training document.
"""

import random
from dataclasses import dataclass

from jaxalign.demo.entities import (
    HELD_OUT_PAIRS,
    OBJECTS,
    PEOPLE,
    PLACES,
    TRAINING_PAIRS,
    with_article,
)

TEMPLATES = (
    "When {first} and {second} went to the {place}, {giver} gave {gift} to {receiver}",
    "Then {first} and {second} went to the {place}. {giver} gave {gift} to {receiver}",
    "After {first} and {second} left the {place}, {giver} handed {gift} to {receiver}",
    "While {first} and {second} were working at the {place}, {giver} passed {gift} to {receiver}",
    "When {first} and {second} met at the {place}, {giver} offered {gift} to {receiver}",
    "Yesterday {first} and {second} walked to the {place}, and {giver} sold {gift} to {receiver}",
    "Because {first} and {second} were good friends, {giver} lent {gift} to {receiver}",
    "Then {first} and {second} had a long argument, and {giver} threw {gift} to {receiver}",
    "Last week {first} and {second} were at the {place}, and {giver} showed {gift} to {receiver}",
    "Before {first} and {second} came home from the {place}, {giver} sent {gift} to {receiver}",
    "After lunch {first} and {second} went to the {place}. Later {giver} gave {gift} to {receiver}",
    "Once {first} and {second} had found {gift} at the {place}, {giver} gave it to {receiver}",
    "Near the {place}, {first} and {second} were very happy, so {giver} gave {gift} to {receiver}",
    "{first} and {second} were sitting near the {place} when {giver} handed {gift} to {receiver}",
    "The friends {first} and {second} lived near the {place}. {giver} brought {gift} to {receiver}",
    "This morning {first} and {second} met at the {place}, and {giver} gave {gift} to {receiver}",
)

_FOLLOW_UPS = (
    "{receiver} smiled and thanked {giver}.",
    '{receiver} said, "Thank you, {giver}!"',
    "{giver} was glad to see {receiver} so happy.",
    "It was just what {receiver} had wanted.",
    "Nobody else noticed it.",
    "Then {receiver} gave {other_gift} to {giver}.",
    "Later {receiver} showed it to {giver} again.",
    "{receiver} put it away, and {giver} went home.",
    '"Is it really for me?" {receiver} asked.',
    "{giver} said that it had not cost much.",
    "After that, {receiver} and {giver} talked for an hour.",
    "In return, {giver} got {other_gift} from {receiver}.",
    "{receiver_subject} thanked {giver_object} for it.",
)


@dataclass(frozen=True)
class IoiPrompt:
    """One indirect-object prompt: its text, the receiver and the giver (with leading spaces)."""

    prompt: str
    target: str
    distractor: str
    template: int
    receiver_first: bool


_BY_NAME = {person.name: person for person in PEOPLE}


def _slots(rng: random.Random, pair: tuple[str, str], receiver_first: bool) -> dict[str, str]:
    """Choose who gives, the place and the objects; ``receiver_first`` is the order ABBA."""
    giver, receiver = rng.sample(pair, 2)
    first, second = (receiver, giver) if receiver_first else (giver, receiver)
    gift, other_gift = rng.sample(OBJECTS, 2)
    return {
        "first": first,
        "second": second,
        "giver": giver,
        "receiver": receiver,
        "place": rng.choice(PLACES),
        "gift": with_article(gift),
        "other_gift": with_article(other_gift),
        "receiver_subject": _BY_NAME[receiver].subject.capitalize(),
        "giver_object": _BY_NAME[giver].object,
    }


def document(rng: random.Random) -> str:
    """Return a training document: one to three sentences about a pair that is not held out."""
    pair = rng.choice(TRAINING_PAIRS)
    slots = _slots(rng, pair, rng.random() < 0.5)
    sentences = [rng.choice(TEMPLATES).format(**slots) + "."]
    for follow_up in rng.sample(_FOLLOW_UPS, rng.choice((0, 0, 1, 2))):
        sentences.append(follow_up.format(**slots))
    if rng.random() < 0.2:
        again = _slots(rng, pair, rng.random() < 0.5)
        sentences.append(rng.choice(TEMPLATES).format(**again) + ".")
    return " ".join(sentences)


def prompt(template: int, slots: dict[str, str]) -> IoiPrompt:
    """Return the prompt of a template: its sentence without the final name."""
    sentence = TEMPLATES[template].format(**slots)
    ending = f" {slots['receiver']}"
    return IoiPrompt(
        prompt=sentence.removesuffix(ending),
        target=ending,
        distractor=f" {slots['giver']}",
        template=template,
        receiver_first=slots["first"] == slots["receiver"],
    )


def held_out_prompts(count: int, seed: int = 0) -> tuple[IoiPrompt, ...]:
    """Return ``count`` prompts of pairs that training never shows together.

    Templates and both orders of the names take turns; pairs, places and objects are drawn.
    """
    rng = random.Random(f"jaxalign held-out ioi {seed}")
    return tuple(
        prompt(
            index % len(TEMPLATES),
            _slots(rng, rng.choice(HELD_OUT_PAIRS), (index // len(TEMPLATES)) % 2 == 0),
        )
        for index in range(count)
    )
