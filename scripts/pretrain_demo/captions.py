"""Written captions for the drawn faces: the emotion by many names, the cues one sees, and the style.

They teach the demo's small CLIP its English; `PHRASES` is all that it reads about faces.
"""

from __future__ import annotations

import numpy as np

from utils.demo.styles import Style

NOUNS = {
    "anger": ("anger", "rage", "fury", "irritation", "hostility"),
    "disgust": ("disgust", "revulsion", "distaste", "aversion", "nausea"),
    "fear": ("fear", "terror", "dread", "panic", "fright"),
    "joy": ("joy", "happiness", "delight", "cheer", "gladness"),
    "sadness": ("sadness", "sorrow", "grief", "misery", "gloom"),
    "surprise": ("surprise", "astonishment", "amazement", "shock", "wonder"),
}
ADJECTIVES = {
    "anger": ("angry", "furious", "enraged", "mad", "irritated", "hostile", "cross"),
    "disgust": ("disgusted", "revolted", "repulsed", "nauseated", "sickened", "grossed out"),
    "fear": ("fearful", "afraid", "scared", "frightened", "terrified", "anxious", "panicked"),
    "joy": ("joyful", "happy", "cheerful", "delighted", "glad", "merry", "pleased"),
    "sadness": ("sad", "sorrowful", "unhappy", "gloomy", "miserable", "tearful", "heartbroken"),
    "surprise": ("surprised", "astonished", "amazed", "startled", "shocked", "stunned"),
}
# visible cues: noun phrases that follow "with", by part of the face
PHRASES = {
    "anger": {
        "brows": ("lowered brows", "eyebrows pulled down and drawn together", "a deep scowl",
                  "angry slanted eyebrows", "brows that slant sharply down toward the nose",
                  "a furrowed brow", "heavy eyebrows in a hard v shape", "knitted brows low over the eyes"),
        "eyes": ("narrowed eyes", "glaring eyes", "a hard stare", "a fierce glare",
                 "piercing eyes under low brows", "eyes fixed in a threatening stare",
                 "hard eyes cut off by the brows"),
        "mouth": ("clenched teeth", "bared teeth", "gritted teeth", "a snarling mouth",
                  "a tight wide mouth full of teeth", "a square mouth showing both rows of teeth",
                  "a shouting mouth with the jaw clenched", "a growl"),
        "extra": ("a tense face", "a clenched jaw", "a hot flushed face", "creases between the brows"),
    },
    "disgust": {
        "brows": ("one eyebrow raised and one lowered", "uneven eyebrows", "crooked brows",
                  "one brow up and one brow down", "unequal brows pulled low",
                  "a lopsided frown of the brows"),
        "eyes": ("squinting eyes", "half closed eyes", "eyes squeezed nearly shut",
                 "tight narrow slits for eyes", "eyes narrowed as if at a bad smell",
                 "heavy lids almost closed"),
        "mouth": ("a tongue sticking out", "the tongue hanging out", "a crooked mouth", "a twisted lip",
                  "a curled upper lip", "a lopsided grimace", "a sneer",
                  "a slanted mouth with the tongue pushed out", "a gagging mouth"),
        "extra": ("a wrinkled nose", "wrinkles across the nose", "a scrunched up nose",
                  "creases around the nose", "lines beside the nose",
                  "a crinkled nose as if something smells rotten"),
    },
    "fear": {
        "brows": ("raised worried brows", "eyebrows lifted and pulled together",
                  "brows raised high and tilted in worry", "anxious slanting eyebrows",
                  "high uneasy brows", "raised eyebrows with their inner ends up"),
        "eyes": ("huge wide eyes with tiny pupils", "wide open frightened eyes", "bulging eyes",
                 "staring eyes with small pupils", "tiny pupils in big white eyes",
                 "eyes showing a lot of white", "terrified wide eyes"),
        "mouth": ("a trembling mouth", "a wavy mouth", "a shaking zigzag mouth", "chattering teeth",
                  "quivering lips", "a wobbly stretched mouth", "lips that tremble",
                  "a wide shivering mouth"),
        "extra": ("sweat on the forehead", "drops of cold sweat", "beads of sweat at the temples",
                  "nervous sweat", "a sweating face", "blue drops of sweat beside the brows"),
    },
    "joy": {
        "brows": ("relaxed brows", "gently arched eyebrows", "soft relaxed eyebrows", "calm curved brows",
                  "easy brows"),
        "eyes": ("smiling eyes", "eyes curved into happy arcs", "crescent eyes",
                 "eyes closed with laughter", "bright eyes squeezed by raised cheeks", "twinkling eyes",
                 "eyes like upturned crescents", "laughing eyes"),
        "mouth": ("a big smile", "a wide grin", "a broad smile with the corners turned up",
                  "a laughing mouth", "an open smile showing the upper teeth", "a beaming smile",
                  "upturned lips", "a mouth that curves upward"),
        "extra": ("rosy cheeks", "pink blushing cheeks", "lifted round cheeks",
                  "a warm blush on both cheeks", "glowing cheeks", "a beaming face"),
    },
    "sadness": {
        "brows": ("brows with raised inner ends", "sloping eyebrows",
                  "drooping eyebrows that rise in the middle", "brows tilted up toward the middle",
                  "sad slanting brows", "eyebrows falling at the outer ends"),
        "eyes": ("downcast eyes", "eyes looking down", "half closed drooping eyes", "a lowered gaze",
                 "tearful eyes", "heavy drooping lids", "wet eyes that look at the ground", "watery eyes"),
        "mouth": ("a downturned mouth", "a deep frown", "a frowning closed mouth",
                  "mouth corners pulled down", "lips that curve downward", "a small drooping mouth",
                  "a pouting lip", "a closed mouth bent down"),
        "extra": ("tears on the cheeks", "a tear rolling down the cheek", "tears falling from the eyes",
                  "blue teardrops", "a crying face", "streaming tears", "a weeping face"),
    },
    "surprise": {
        "brows": ("brows raised very high", "eyebrows lifted far up the forehead", "high arched brows",
                  "sky high eyebrows", "lifted rounded eyebrows", "arched eyebrows far above the eyes"),
        "eyes": ("wide open round eyes", "big round eyes", "wide eyes with large pupils",
                 "eyes opened wide", "staring round eyes", "eyes as round as saucers", "popping eyes"),
        "mouth": ("an open round mouth", "a mouth shaped like the letter o", "a dropped jaw",
                  "a gaping mouth", "an oval open mouth", "a small mouth wide open", "a gasping mouth",
                  "lips forming a circle"),
        "extra": ("a long stretched face", "a gasp", "a forehead pushed up by the brows",
                  "a face frozen in amazement"),
    },
}
# complete clauses, by part of the face
CLAUSES = {
    "anger": ("the brows are pulled down", "the eyebrows slant down toward the nose",
              "the eyes glare from under low brows", "the teeth are clenched and bared",
              "the mouth snarls", "the jaw is tight", "it scowls and grits its teeth"),
    "disgust": ("the nose is wrinkled", "the nose is scrunched up", "the tongue sticks out",
                "the upper lip is curled and crooked", "the eyes squint",
                "the mouth is twisted to one side", "it sneers as if something tastes bad"),
    "fear": ("the eyes are wide open and the pupils are tiny", "the mouth trembles",
             "the lips shake in a wavy line", "sweat runs down the forehead",
             "the brows are raised and pulled together", "the teeth chatter",
             "it looks as if it wants to scream and run"),
    "joy": ("the mouth curves upward", "the eyes curve into crescents", "the cheeks are rosy and lifted",
            "the lips smile broadly", "the corners of the mouth turn up", "it laughs and beams",
            "the eyes sparkle and smile"),
    "sadness": ("the corners of the mouth turn down", "the eyes look down", "tears roll down the cheeks",
                "the eyelids droop", "the inner ends of the brows rise", "it cries and frowns",
                "the mouth is closed and bent down"),
    "surprise": ("the mouth is open in a round o", "the jaw drops", "the eyebrows fly up",
                 "the eyes are wide and round", "the brows are raised high above the eyes", "it gasps",
                 "the mouth hangs open like a circle"),
}
HEADS = (
    "a photo of {noun}", "a photo of a {noun}", "a photo of {an_adj} face", "a photo of {an_adj} person",
    "a photo of someone {adj}", "a drawing of a {noun} face", "a drawing of {noun}",
    "a drawing of {an_adj} face", "a cartoon of {an_adj} person", "a cartoon face showing {noun}",
    "a cartoon face full of {noun}", "an image of {noun}", "a picture of {an_adj} character",
    "a picture of {noun}", "a face that shows {noun}", "a face expressing {noun}",
    "an expression of {noun}", "the look of {noun}", "{an_adj} face", "{an_adj} person",
    "{an_adj} expression", "{an_adj} cartoon character", "someone feeling {noun}",
    "someone who feels {adj}", "this face looks {adj}", "this person is {adj}", "the emotion is {noun}",
    "the emotion of {noun}", "{noun}", "{adj}", "a painting of {noun}", "a sketch of {an_adj} face",
    "an image that evokes {noun}", "a picture that makes people feel {noun}",
    "a portrait of {an_adj} person", "an illustration of {noun}", "a human face filled with {noun}",
    "the face of someone who is {adj}", "a head drawn to look {adj}", "how {noun} looks",
    "a feeling of {noun}", "a face marked by {noun}", "{noun} on a cartoon face", "an emoji of {noun}",
    "{an_adj} look", "the features of {an_adj} face", "a clear sign of {noun}",
    "this character seems {adj} and shows {noun}",
)


def caption(rng: np.random.Generator, distribution: np.ndarray, style: Style) -> str:
    """One English caption of a face that shows `distribution` (shares in the classes' order) in `style`.

    It names the strongest emotion (and at times a second one), lists visible cues, each of an emotion drawn
    in proportion to its squared share, or does both; about half of the captions also tell the style.
    """
    def pick(options: tuple[str, ...]) -> str:
        return options[rng.integers(len(options))]

    emotions, shares = list(NOUNS), np.asarray(distribution, dtype=float)
    ranked = [emotions[i] for i in np.argsort(-shares)]
    emotion = ranked[0]
    adjective = pick(ADJECTIVES[emotion])
    noun = emotion if rng.random() < 0.5 else pick(NOUNS[emotion])
    head = pick(HEADS).format(noun=noun, adj=adjective, an_adj=with_article(adjective))
    if np.sort(shares)[-2] > 0.25 and rng.random() < 0.5:
        head += pick((" with a hint of {}", " mixed with {}", " and some {}", " with a touch of {}")).format(
            pick(NOUNS[ranked[1]]))
    parts = [part for part in ("brows", "eyes", "mouth", "extra") if style.extras or part != "extra"]
    chosen = rng.permutation(parts)[:rng.integers(1, len(parts) + 1)]
    sources = [emotions[i] for i in rng.choice(len(emotions), size=len(chosen), p=shares ** 2 / (shares ** 2).sum())]
    cues = [pick(PHRASES[source][part]) for source, part in zip(sources, chosen)]
    kind = rng.random()
    if kind < 0.3:
        text = head
    elif kind < 0.6:
        text = head + pick((" with ", ": ", ", with ", ", seen by ", " who has ")) + enumerate_words(cues)
    elif kind < 0.8:
        start = pick(("", "a face with ", "it has ", "the face has ", "this person has ", "we see "))
        text = start + enumerate_words(cues)
    else:
        clauses = [pick(CLAUSES[source]) for source in dict.fromkeys(sources)]
        text = pick((head + ". ", head + ", ", head + " when ", "", "in this face ")) + enumerate_words(clauses)
    if rng.random() < 0.5:
        text += pick((", ", ". ", " ")) + describe_style(rng, style)
    return text + pick((".", ".", ""))


def describe_style(rng: np.random.Generator, style: Style) -> str:
    """One or two remarks on the colours, the head, the hair and the background."""
    colour, second = style.background_colour, style.second_colour
    backgrounds = {
        "plain": f"on a plain {colour} background", "spotlight": f"before a softly lit {colour} wall",
        "gradient": f"on a background that fades from {colour} to {second}",
        "striped": f"on a striped {colour} and {second} background",
        "noisy": f"on a noisy {colour} and {second} background",
        "chequered": f"on a chequered {colour} and {second} background",
    }
    skin = "drawn as a black and white outline" if style.outline else f"with {style.skin} skin"
    hair = "without hair" if style.hair == "bald" else f"with {style.hair} {style.hair_colour} hair"
    lines = {"clean": "drawn with clean dark lines", "fine": "drawn with fine thin lines",
             "bold": "drawn with bold thick lines", "dashed": "drawn with dashed lines",
             "sketched": "sketched with loose lines"}[style.line]
    remarks = [backgrounds[style.background], skin, hair, f"with {with_article(style.head)} head", lines]
    return " ".join(rng.permutation(remarks)[:rng.integers(1, 3)])


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def enumerate_words(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
