"""The playground: one prompt, answered by several models and scored by the teacher. It imports without torch.

What is asked and what is answered, for the engine, the API and the command line; see engine/playground.py.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engine.findings import misfit
from engine.frozen import Frozen, Reference
from engine.prefix_state import Tokens
from engine.spec import RunSpec

MAX_SPEAKERS = 4
MAX_SAMPLES = 4


class Question(Frozen):
    """A prompt and how its answers are sampled; every speaker gets the same."""

    prompt: Annotated[str, Field(min_length=1, max_length=1_000_000)]
    """What is asked."""
    template: Literal["plain", "chat"] = "plain"
    """`plain` sends the prompt as it is; `chat` wraps it as a user message in each speaker's own chat template."""
    system_message: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None
    """A system message before the chat; empty for none."""
    enable_thinking: bool | None = None
    """Tells a chat template that knows it whether the model thinks before it answers; empty leaves the template's default."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Softmax temperature of sampling; 0 takes the most likely token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that together have this probability; 1 is all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sample from the tokens at least this many times as likely as the most likely one; 0 is all."""
    max_completion_tokens: Tokens = 128
    """Where an answer is cut, in tokens."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """All speakers draw their tokens with the same random numbers, which depend on this and on the sample alone."""
    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    """Answers of each speaker."""

    @model_validator(mode="after")
    def _options_fit_together(self) -> Self:
        for name in ("system_message", "enable_thinking"):
            if self.template == "plain" and getattr(self, name) is not None:
                raise misfit(
                    name, f"{name} is set but template is 'plain'; set template to chat or leave {name} empty."
                )
        if self.temperature == 0 and self.num_samples > 1:
            raise misfit(
                "num_samples",
                f"num_samples is {self.num_samples} but temperature 0 gives the same answer each time; set it to 1 or "
                "raise temperature.",
            )
        return self


class CheckpointSpeaker(Frozen):
    """The student as a checkpoint holds it."""

    kind: Literal["checkpoint"] = "checkpoint"
    folder: Reference
    """The checkpoint's folder: a path, or `home:…`."""
    run_name: Annotated[str, Field(min_length=1, max_length=300)]
    step: Annotated[int, Field(ge=0)]
    manifest_sha256: str | None = None
    """What its manifest.json must hash to; None where nobody has recorded it."""

    @property
    def label(self) -> str:
        """Such as `prefix 8 at step 40`."""
        return f"{self.run_name} at step {self.step}"

    @property
    def in_words(self) -> str:
        """For the middle of a sentence."""
        return f"the student of {self.label}"


class BaseSpeaker(Frozen):
    """The student before training."""

    kind: Literal["base"] = "base"

    @property
    def label(self) -> str:
        return "base student"

    @property
    def in_words(self) -> str:
        return f"the {self.label}"


class TeacherSpeaker(Frozen):
    """The teacher itself."""

    kind: Literal["teacher"] = "teacher"

    @property
    def label(self) -> str:
        return "teacher"

    @property
    def in_words(self) -> str:
        return f"the {self.label}"


Speaker = Annotated[CheckpointSpeaker | BaseSpeaker | TeacherSpeaker, Field(discriminator="kind")]


class PlaygroundSpec(Question):
    """A question with those who are to answer it."""

    run: RunSpec
    """Names the teacher that scores all answers, the base student, the temperature of the divergences and the device."""
    speakers: Annotated[list[Speaker], Field(min_length=1, max_length=MAX_SPEAKERS)]
    """Who answers, in this order."""

    @model_validator(mode="after")
    def _nobody_speaks_twice(self) -> Self:
        for at, speaker in enumerate(self.speakers):
            first = self.speakers.index(speaker)
            if first < at:
                message = f"speakers.{at} is the same as speakers.{first} ({speaker.label}); remove one of them."
                raise misfit(f"speakers.{at}", message)
        return self


class Answer(Frozen):
    """One completion of one speaker."""

    speaker: int
    """Place of its author among the speakers, from 0."""
    sample: int
    """Which of the author's answers it is, from 0."""
    row: int | None
    """Its row among the token traces; None when it could not be scored."""
    unscored: str
    """Why it has no scores, as the end of a sentence; empty when it has."""
    text: str
    """The completion, special tokens included; cut off after 32,768 characters."""
    num_prompt_tokens: int
    num_tokens: int
    finish_reason: Literal["eos", "length"]
    mean_reverse_kl: float | None
    """Mean over its tokens of KL(student‖teacher), nats."""
    max_reverse_kl: float | None


class PlaygroundResult(Frozen):
    """All answers to a question."""

    answers: list[Answer]
    """By speaker, then by sample."""
    reader: str | None
    """The student that the teacher's own answers are compared with; None when the teacher did not answer."""
    scoring_temperature: float
    """Softmax temperature of both models in all divergences and log-probabilities: that of the run."""
    notes: list[str]
    """What a reader must know to compare the answers."""
    seconds: float
