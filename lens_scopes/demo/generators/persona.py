"""Write a persona, some chatter, and a meal: "answer as a vegan : ... for dinner I eat" -> beans.

The rule: the diet of the persona and the meal together name one food. So the answer hangs on two words, the persona in
the instruction (a persona of another diet eats something else) and the meal in the last sentence. The chatter names
other personas and other meals, which do not matter.

Held out: the pair of persona and meal. The model has seen the persona at other meals, and other personas of the same
diet at this meal.
"""

from functools import partial
from random import Random

from lens_scopes.demo import vocabulary as v
from lens_scopes.demo.draft import Draft, Writer, is_held_out


def draft(rng: Random, held_out: bool) -> Draft:
    """One instruction with up to three sentences of chatter."""
    while True:
        persona, meal = rng.choice(v.PERSONAS), rng.choice(v.MEALS)
        if is_held_out(persona, meal) == held_out:
            break
    diet = diet_of(persona)
    others = [other for other in v.PERSONAS if diet_of(other) != diet]
    rival = rng.choice(others)

    writer = Writer()
    writer.usual(rng, v.SPEAK, v.AS, v.ONE)
    at_persona = writer.add(persona, others)
    writer.usual(rng, v.COLONS)
    for chatter in rng.sample((partial(_person, rival=rival), _talk, _thing), rng.randint(0, 3)):
        chatter(rng, writer)
    writer.usual(rng, v.FOR)
    at_meal = writer.add(meal, v.MEALS)
    writer.usual(rng, v.SPEAKERS, v.EAT)

    answer = food(persona, meal)
    return Draft(
        kind="persona",
        words=tuple(writer.words),
        pools=tuple(writer.pools),
        causes=(at_persona, at_meal),
        answer=answer,
        versus=food(rival, meal),
        twin=writer.twin(at_persona, rival),
        document=(*writer.words, answer, rng.choice(v.STOPS)),
        graded=(len(writer.words),),
    )


def diet_of(persona: str) -> str:
    """The diet that the persona keeps."""
    return next(diet for diet, personas in v.DIETS.items() if persona in personas)


def food(persona: str, meal: str) -> str:
    """What the persona eats at the meal."""
    return v.FOODS[diet_of(persona)][v.MEALS.index(meal)]


def _person(rng: Random, writer: Writer, rival: str) -> None:
    writer.usual(rng, v.POSSESSIVES)
    writer.any(rng, v.RELATIVES)
    writer.usual(rng, v.IS, v.ONE)
    writer.add(rival, v.PERSONAS)
    writer.usual(rng, v.STOPS)


def _talk(rng: Random, writer: Writer) -> None:
    writer.usual(rng, v.FOR)
    writer.any(rng, v.MEALS)
    writer.usual(rng, v.SPEAKERS, v.TALK, v.ABOUT)
    writer.any(rng, v.TOPICS)
    writer.usual(rng, v.STOPS)


def _thing(rng: Random, writer: Writer) -> None:
    writer.usual(rng, v.DETERMINERS)
    writer.any(rng, v.THINGS)
    writer.usual(rng, v.IS)
    writer.any(rng, v.QUALITIES)
    writer.usual(rng, v.STOPS)
