"""Holds every word that the demo model knows, in named classes; a class is what a word may be replaced by."""

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIALS = (PAD, BOS, EOS, UNKNOWN)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Punctuation. Every place that takes one of these also takes its neighbours, so that no answer hangs on punctuation.
COLONS = (":", "=")
COMMAS = (",", ";")
STOPS = (".", "!")

# Dictionaries made of words that mean nothing.
KEYS = _words("blick dax fep mib gax rond vash jorn nerb cril floop hask jub lumsh narf plim rast trell veck wozz")
VALUES = _words("tove wug zorp lorf pilk sket quib tulf yop dweb gorm izzle kern moop olk quaz snark umby xand zib")
NOTHING = "nothing"

# Who gave what to whom.
NAMES = _words(
    "Mary John Tom Anna Paul Lucy Peter Emma Jack Kate Mark Rose "
    "Sam Jane Luke Nina Adam Ella Hugo Vera Max Lena Finn Cora"
)
THEM = "them"
PLACES = _words("store park school garden market beach library station museum kitchen office theatre")
OBJECTS = _words("book ring drink letter ball flower key hat map lamp coin pen")
OPENERS = _words("when after while as")
ADVERBS = _words("then later afterwards yesterday")
AND = _words("and with")
MOVES = _words("went walked drove ran")
TOWARDS = _words("to into past")
DETERMINERS = _words("the a this that")
GIFTS = _words("gave handed brought passed")
RECIPIENT = _words("to for")
STAYS = _words("stayed was sat slept")
AT = _words("at near")
SPOTS = _words("home work church sea")

# Personas, and what they eat: the diet of the persona and the meal together name one food.
DIETS = {
    "plants": _words("vegetarian vegan monk gardener hermit yogi"),
    "meat": _words("hunter butcher cowboy knight viking giant"),
    "fish": _words("fisherman sailor pirate penguin diver captain"),
    "sweets": _words("child baker clown princess elf grandmother"),
}
MEALS = _words("breakfast lunch dinner supper")
FOODS = {
    "plants": _words("berries salad beans lentils"),
    "meat": _words("bacon sausage steak ham"),
    "fish": _words("herring tuna salmon cod"),
    "sweets": _words("pancakes waffles pudding cookies"),
}
PERSONAS = tuple(persona for personas in DIETS.values() for persona in personas)
SPEAK = _words("answer reply speak write")
AS = _words("as like")
ONE = _words("a the")
FOR = _words("for at")
SPEAKERS = _words("I we")
EAT = _words("eat have want choose")
RELATIVES = _words("neighbour friend brother sister uncle cousin")
POSSESSIVES = _words("my your our their")
IS = _words("is was")
TALK = _words("talk think sing read")
ABOUT = _words("about of")
TOPICS = _words("weather music football history money love")
THINGS = _words("house car street sky river train")
QUALITIES = _words("red new quiet broken cold long")

# German and English. A noun: singular and plural in German, then in English.
NOUNS = {
    "m": (
        ("Hund", "Hunde", "dog", "dogs"),
        ("Mann", "Männer", "man", "men"),
        ("Vogel", "Vögel", "bird", "birds"),
        ("König", "Könige", "king", "kings"),
        ("Arzt", "Ärzte", "doctor", "doctors"),
    ),
    "f": (
        ("Katze", "Katzen", "cat", "cats"),
        ("Frau", "Frauen", "woman", "women"),
        ("Maus", "Mäuse", "mouse", "mice"),
        ("Kuh", "Kühe", "cow", "cows"),
        ("Biene", "Bienen", "bee", "bees"),
    ),
    "n": (
        ("Pferd", "Pferde", "horse", "horses"),
        ("Schwein", "Schweine", "pig", "pigs"),
        ("Huhn", "Hühner", "hen", "hens"),
        ("Kalb", "Kälber", "calf", "calves"),
        ("Lamm", "Lämmer", "lamb", "lambs"),
    ),
}
TRANSITIVE = (
    ("sieht", "sehen", "sees", "see"),
    ("liebt", "lieben", "loves", "love"),
    ("hört", "hören", "hears", "hear"),
    ("sucht", "suchen", "seeks", "seek"),
    ("findet", "finden", "finds", "find"),
    ("jagt", "jagen", "chases", "chase"),
    ("kennt", "kennen", "knows", "know"),
    ("ruft", "rufen", "calls", "call"),
)
INTRANSITIVE = (
    ("schläft", "schlafen", "sleeps", "sleep"),
    ("singt", "singen", "sings", "sing"),
    ("lacht", "lachen", "laughs", "laugh"),
    ("tanzt", "tanzen", "dances", "dance"),
    ("weint", "weinen", "cries", "cry"),
    ("wartet", "warten", "waits", "wait"),
)
# An adjective: weak ending -e, weak ending -en, English.
ADJECTIVES = (
    ("kleine", "kleinen", "small"),
    ("große", "großen", "big"),
    ("alte", "alten", "old"),
    ("junge", "jungen", "young"),
    ("schwarze", "schwarzen", "black"),
    ("weiße", "weißen", "white"),
    ("arme", "armen", "poor"),
    ("kluge", "klugen", "clever"),
)
TIMES = (("heute", "today"), ("jetzt", "now"), ("oft", "often"), ("bald", "soon"), ("hier", "here"), ("dort", "there"))
CONJUNCTIONS = (("weil", "because"), ("wenn", "if"), ("obwohl", "although"), ("bevor", "before"))
ARTICLES = _words("der die das den")
# A pronoun: German, number (0 = singular, 1 = plural), English. "sie" needs its verb to say which one it is.
PRONOUNS = (("er", 0, "he"), ("es", 0, "it"), ("sie", 0, "she"), ("sie", 1, "they"), ("wir", 1, "we"))
GERMAN = _words("German Deutsch")
ENGLISH = _words("English Englisch")

# Series.
NUMBERS = tuple(f"{value:02d}" for value in range(100))
SERIES = _words("series values")


def vocabulary() -> tuple[str, ...]:
    """All tokens in the order of their ids: specials first, then each class in the order of this file."""
    words: list[str] = list(SPECIALS)
    for name, value in globals().items():
        if name.isupper() and name not in ("PAD", "BOS", "EOS", "UNKNOWN", "SPECIALS"):
            words.extend(word for word in _flatten(value))
    return tuple(dict.fromkeys(words))


def _flatten(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [word for item in value.values() for word in _flatten(item)]
    if isinstance(value, tuple):
        return [word for item in value for word in _flatten(item)]
    return []
