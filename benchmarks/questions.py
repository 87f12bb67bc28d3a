"""Sixteen questions of different lengths, anew for each round. Knows no tokenizer."""

_TEMPLATES = (
    "What is {n} times 7?",
    "A train travels {n} km in 2 hours. What is its average speed?",
    "A shop sells apples in bags of {n}. How many apples are in 12 bags, and how many are left "
    "when 5 friends share them equally?",
    "Name a country whose flag has fewer than {n} stars.",
    "I have {n} coins, lose a third of them and then find 4. How many do I have now?",
    "Explain in one sentence why {n} is, or is not, a prime number.",
    "A recipe for 4 people needs {n} g of flour, 3 eggs and half a litre of milk. How much of each "
    "is needed for 10 people?",
    "How many minutes are {n} hours?",
    "Which planet of the solar system would you weigh least on if you weigh {n} kg on Earth?",
    "Write a Python function that returns the sum of the digits of {n}.",
    "A patient takes a pill every {n} hours, the first one at 8 o'clock in the morning. At what "
    "time is the fifth pill due, and how many pills are needed for one week?",
    "Is {n} larger than the number of days in a leap year?",
    "Two towers are {n} m apart. Light needs how long from one to the other, roughly?",
    "What comes next: 1, 4, 9, {n}?",
    "A library has {n} shelves with 40 books each and lends out every fifth book. How many books "
    "stay in the library, and how many shelves could be left empty?",
    "Tell me a short story about {n} penguins that want to cross a river.",
)
NUM_QUESTIONS = len(_TEMPLATES)


def questions(num_questions: int, *, round_index: int) -> list[str]:
    """No two rounds ask the same, so nothing is answered out of a cache."""
    if num_questions > NUM_QUESTIONS:
        raise ValueError(f"{num_questions} questions are asked for; there are {NUM_QUESTIONS}.")
    numbers = [17 + 31 * round_index + 5 * index for index in range(num_questions)]
    return [
        template.replace("{n}", str(n)) for template, n in zip(_TEMPLATES, numbers, strict=False)
    ]
