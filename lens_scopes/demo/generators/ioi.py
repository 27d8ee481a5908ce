"""Write sentences with an indirect object: "when Mary and John went to the store , John gave a book to" -> Mary.

The rule: of the two people who went, the answer is the one who does not give; "them" where a third person gives. So the
answer hangs on the three names: a new name for the receiver is the new answer, and with a new name for the giver, in
either place, the giver is a third person. Half of the prompts begin with a sentence about somebody else, whose name
does not matter. Four templates: opening with "when ... ," or with "then , ... .", giver first or receiver first.

Held out: the pair of people, in either order.
"""

from random import Random

from lens_scopes.demo import vocabulary as v
from lens_scopes.demo.draft import Draft, Writer, is_held_out


def draft(rng: Random, held_out: bool) -> Draft:
    """One sentence; in training the giver is a third person one time in five."""
    while True:
        giver, receiver, third, stranger = rng.sample(v.NAMES, 4)
        if is_held_out(*sorted((giver, receiver))) == held_out:
            break
    couple = [giver, receiver] if rng.random() < 0.5 else [receiver, giver]
    writer = Writer()
    used = {giver, receiver}
    if rng.random() < 0.5:
        new = _except(used)
        writer.add(third, new)
        writer.usual(rng, v.STAYS, v.AT, v.SPOTS, v.STOPS)
        used.add(third)
    new = _except(used)

    opening = rng.random() < 0.5
    if opening:
        writer.usual(rng, v.OPENERS)
    else:
        writer.usual(rng, v.ADVERBS, v.COMMAS)
    at_first = writer.add(couple[0], new)
    writer.usual(rng, v.AND)
    at_second = writer.add(couple[1], new)
    writer.usual(rng, v.MOVES, v.TOWARDS, v.DETERMINERS)
    writer.any(rng, v.PLACES)
    writer.usual(rng, v.COMMAS if opening else v.STOPS)
    at_giver = writer.add(giver, [*new, receiver])
    writer.usual(rng, v.GIFTS, v.DETERMINERS)
    writer.any(rng, v.OBJECTS)
    writer.usual(rng, v.RECIPIENT)

    document, answer = list(writer.words), receiver
    if not held_out and rng.random() < 0.2:
        document[at_giver] = third if rng.random() < 0.5 else stranger
        answer = v.THEM
    document += [answer, rng.choice(v.STOPS)]
    return Draft(
        kind="ioi",
        words=tuple(writer.words),
        pools=tuple(writer.pools),
        causes=(at_first, at_second, at_giver),
        answer=receiver,
        versus=giver,
        twin=writer.twin(at_giver, receiver),
        document=tuple(document),
        graded=(len(document) - 2,),
    )


def _except(used: set[str]) -> list[str]:
    return [name for name in v.NAMES if name not in used]
