"""The `[corpus]` section: sources, filters, synthesis, engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lmforge.recipe.types import Curriculum, Level, Positive, Section, Share, check_weight

SourceKind = Literal[
    "python-library", "folder", "jsonl", "parquet", "hub", "warc", "html", "mediawiki", "code", "parallel",
    "procedural", "images",
]  # fmt: skip
# kinds of which some part is always damaged
SKIPPING: frozenset[SourceKind] = frozenset(("hub", "warc", "html", "code"))
Genre = Literal["books", "encyclopedia", "news", "web", "technical", "code", "stories", "unknown"]
ProceduralTask = Literal[
    "sum",
    "expression",
    "division",
    "sequence",
    "arithmetic_words",
    "algebra_words",
    "copy",
    "reverse",
    "spell",
    "sort",
    "alphabet",
    "extreme",
    "count",
    "letters",
    "distinct",
    "brackets",
    "close",
    "program",
    "algebra",
    "algebra_calculator",
    "algorithm",
]


class Source(Section):
    """Where documents come from."""

    kind: SourceKind  # what is read: see the guide to the corpus
    path: Path | None = None  # a file, a folder or a pattern, relative to the recipe; OWNER/NAME for hub
    genre: Genre = "unknown"  # which quality rules apply; mixtures and reports name it too
    # a number: how often its documents stand in the corpus; a curriculum: how often the loader draws them
    weight: Curriculum = 1.0
    text_field: str = "text"  # jsonl, parquet, hub: the field with the text
    # a broken record or file; default: refuse, but skip and count hub, warc, html, code
    damaged: Literal["refuse", "skip"] | None = None
    config: str | None = None  # hub: which of the data set's configurations
    split: str = "train"  # hub: which of its splits
    revision: str | None = None  # hub: branch, tag or commit
    join: Literal["repository"] | None = None  # code: the files of each folder directly below the path in one document
    # parallel: the two fields of a line, each a sentence in the language it is named after
    languages: tuple[str, str] | None = None
    tasks: tuple[ProceduralTask, ...] | None = None  # procedural: which, in equal parts; default: all
    # procedural: how many, default 10,000; images: how many episodes, default 10,000
    documents: Positive | None = None
    levels: tuple[Level, Level] | None = None  # procedural: the least and the greatest difficulty; default: 1 to 3
    problems: Positive | None = None  # procedural: in a document; default: 4
    # images: of which classes; seen and unseen are three quarters and one quarter of the groups that classes belong to
    classes: Literal["all", "seen", "unseen"] = "all"
    turned: bool = False  # images: each quarter turn of a class is a class of its own
    mirrored: bool = False  # images: the mirror image of a class is a class of its own, before any turn
    moved: Annotated[int, Field(ge=0)] = 0  # images: pixels up to which each is moved
    # images: how much each is turned, stretched and sheared; 1: up to 30 degrees, 1.5 times, half a pixel a pixel
    warped: Share = 0.0
    copies_of_each: Positive = 1  # images: how often each stands in the corpus, moved anew
    # images: (ways, shots): documents are episodes, of so many classes so many named images, and one more to name
    episodes: tuple[Positive, Positive] | None = None

    @model_validator(mode="after")
    def _path_fits_kind(self) -> Source:
        if self.kind == "python-library" and self.path is not None:
            raise ValueError("kind 'python-library' reads the running Python's own library and takes no path")
        if self.kind == "procedural" and self.path is not None:
            raise ValueError("kind 'procedural' makes its documents and takes no path")
        if self.kind not in ("python-library", "procedural") and self.path is None:
            raise ValueError(f"kind '{self.kind}' needs a path")
        if self.kind == "parallel" and self.languages is None:
            raise ValueError('kind \'parallel\' needs languages, such as ["en", "de"]')
        if self.levels and self.levels[0] > self.levels[1]:
            raise ValueError("levels: the greatest comes second")
        return self

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> Source:
        for kind, keys in (
            ("hub", ("config", "split", "revision")),
            ("code", ("join",)),
            ("parallel", ("languages",)),
            ("procedural", ("tasks", "levels", "problems")),
            ("images", ("classes", "turned", "mirrored", "moved", "warped", "copies_of_each", "episodes")),
        ):
            given = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if self.kind != kind and given:
                raise ValueError(f"{given[0]} is a key of kind '{kind}', not of '{self.kind}'")
        if self.documents is not None and self.kind != "procedural" and not self.episodes:
            raise ValueError("documents: how many are made is a key of kind 'procedural', and of images with episodes")
        return self

    @model_validator(mode="after")
    def _curriculum_isin_order(self) -> Source:
        check_weight(self.weight)
        return self

    @property
    def copies(self) -> float:
        """How often each document stands in the corpus: a plain weight; 1 where a curriculum leaves the weighing to the
        loader."""
        return self.weight if isinstance(self.weight, float) else 1.0

    @property
    def curriculum(self) -> tuple[tuple[float, float], ...]:
        """(share of training from which it holds, weight) pairs for the loader; a plain weight is already in the
        corpus, so 1 here."""
        return self.weight if isinstance(self.weight, tuple) else ((0.0, 1.0),)

    @property
    def skips_damage(self) -> bool:
        """Whether damaged input is skipped and counted rather than refused."""
        return self.damaged == "skip" if self.damaged else self.kind in SKIPPING


RuleFamily = Literal["boilerplate", "punctuation", "gopher", "repetition", "c4", "fineweb"]
Rule = Literal[
    "too_short", "too_long", "mostly_not_text", "duplicate_lines", "duplicate_ngrams",
    "gopher_too_few_words", "gopher_too_many_words", "gopher_short_words", "gopher_long_words", "gopher_hash_signs",
    "gopher_ellipses", "gopher_bullet_lines", "gopher_ellipsis_lines", "gopher_few_letters", "gopher_stop_words",
    "repeated_paragraphs", "repeated_paragraph_characters", "repeated_lines", "repeated_line_characters", "top_2gram",
    "top_3gram", "top_4gram", "repeated_5grams", "repeated_6grams", "repeated_7grams", "repeated_8grams",
    "repeated_9grams", "repeated_10grams", "c4_lorem_ipsum", "c4_curly_bracket", "c4_too_few_sentences",
    "fineweb_unpunctuated_lines", "fineweb_short_lines", "fineweb_repeated_line_characters", "fineweb_list",
]  # fmt: skip
PrivateKind = Literal["email", "ip", "phone", "card"]


class Perplexity(Section):
    """Documents unlike a reference are left out, as an n-gram model of bytes measures it."""

    reference: Path  # texts of the wanted kind: a folder, a text, JSONL or Parquet file
    # worse than this share of the reference's held-out documents is too far
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.0
    most_bits_per_byte: Annotated[float, Field(gt=0)] | None = None  # instead of the percentile
    order: Annotated[int, Field(ge=1, le=8)] = 5  # of the n-gram model


class Quality(Section):
    """Documents that a classifier finds more like the bad examples than the good ones are left out."""

    good: Path  # examples: a folder, a text, JSONL or Parquet file
    bad: Path  # examples of what is to be left out
    threshold: Share = 0.5  # least probability of being good
    model: Path | None = None  # where the trained classifier is kept (.npz); default: trained anew in each process


class Synthesis(Section):
    """Documents made from those of the training split; `share` of the training text is to be of this kind."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.05  # of the training text, in bytes


class Augment(Synthesis):
    """Copies with words changed at these rates (Wei and Zou 2019)."""

    method: Literal["augment"]  # words changed
    synonym: Share = 0.1  # share of words exchanged for a similar one
    swap: Share = 0.1  # share of words that change places
    delete: Share = 0.1  # share of words left out
    insert: Share = 0.1  # share of words put in


class Noise(Synthesis):
    """Passages to be restored: the input is shown, the loss counts on what is missing."""

    method: Literal["noise"]  # passages to be restored
    # what is hidden or altered; mixture: the seven denoisers of UL2
    objective: Literal[
        "mixture", "span_mask", "token_mask", "infill", "delete", "permute", "rotate", "characters", "prefix",
    ] = "mixture"  # fmt: skip
    passage_chars: Positive = 400  # input and target together should fit tokens.context


class BackTranslation(Synthesis):
    """Paraphrases by way of another language and back."""

    method: Literal["back_translation"]  # paraphrases
    model: Path | None = None  # a run that learned both directions from a `parallel` source
    # instead: two Hub models, there and back (needs transformers, and the models on this machine)
    hub: tuple[str, str] | None = None
    language: str = "en"  # of the texts, ISO 639-1
    through: str = "de"  # the language in between
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0  # above 0 the words are drawn: more variety, more mistakes

    @model_validator(mode="after")
    def _one_model(self) -> BackTranslation:
        if (self.model is None) == (self.hub is None):
            raise ValueError("back_translation needs model = RUN, or hub = [THERE, BACK], and not both")
        return self


SynthesisStep = Annotated[Augment | Noise | BackTranslation, Field(discriminator="method")]


class Slurm(Section):
    """How the corpus stage's jobs are asked for on a Slurm cluster."""

    partition: str  # where the jobs run
    time: str = "24:00:00"  # a job's limit
    memory_gb: Positive = 4  # of each job
    max_array: Positive = 1000  # elements of an array job that the cluster takes
    qos: str = "normal"  # quality of service that is asked for
    sbatch: dict[str, str] = Field(default={})  # further options of sbatch, such as account


class Corpus(Section):
    """Raw text → clean documents."""

    # where documents come from; of equal documents the first source's stays
    sources: tuple[Source, ...] = (Source(kind="python-library", genre="code"),)
    # share of documents kept out of training, chosen by document hash
    holdout: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    leaked_share: Share = 0.1  # a document of which more than this stands in training is not held out
    # shorter documents are dropped; a sign of Chinese, Japanese or Korean counts double; 1: any text is long enough
    min_chars: Positive = 64
    max_chars: Positive = 1_000_000  # longer documents are dropped
    max_duplicate_lines: Share = 0.6  # share of a document's lines that repeat an earlier line of it
    max_duplicate_ngrams: Share = 0.6  # share of a document's characters inside repeated 10-word runs
    # Rules of published corpora for prose (web, news, encyclopedia, books, stories; some for the web alone); see
    # corpus/clean/quality.py.
    rules: tuple[RuleFamily, ...] = ("boilerplate", "gopher", "repetition", "c4", "fineweb")
    rules_off: tuple[Rule, ...] = ()  # single rules, named as the reasons in statistics.json, that leave nothing out
    languages: tuple[str, ...] = ()  # ISO 639-1 codes of the languages kept, code aside; default: any
    # replaced by what they are, code and technical text aside
    mask_private: tuple[PrivateKind, ...] = ("email", "ip", "phone", "card")
    toxic_words: Path | None = None  # a list, one word or phrase a line; documents with one are left out
    perplexity: Perplexity | None = None  # leaves out documents unlike a reference
    quality: Quality | None = None  # leaves out what a classifier finds bad
    # text sampled for the slower figures of statistics.json; 0: none of these
    analyse_bytes: Annotated[int, Field(ge=0)] = 4_000_000
    synthesis: tuple[SynthesisStep, ...] = ()  # documents made from those of the training split
    # the most of the training text, in bytes, that made documents may be
    synthetic_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    # documents that share at least this share of their words, in order, with a kept one go; 1: none do
    near_duplicates: Share = 0.75
    # lines (not of code) that stand in at least so many documents go; 0: none do
    repeated_lines: Annotated[int, Field(ge=0)] = 10
    decontaminate: tuple[Path, ...] = ()  # benchmark texts to keep out: JSONL or text files, folders, patterns
    executor: Literal["local", "slurm", "ray"] = "local"  # where the passes run: this machine, or a cluster's jobs
    # processes, or tasks at once on a cluster; default: the cores, but one where that is quicker
    workers: Positive | None = None
    slurm: Slurm | None = None  # how a Slurm cluster is asked; needed with executor slurm

    @property
    def made_alone(self) -> bool:
        """Whether every source makes its documents: they are then read, split and held out like any other, and not
        bounded by a share of real text."""
        return bool(self.sources) and all(source.kind == "procedural" for source in self.sources)

    @model_validator(mode="after")
    def _shares_fit(self) -> Corpus:
        asked = sum(step.share for step in self.synthesis)
        if asked > self.synthetic_share + 1e-9:
            raise ValueError(
                f"the shares of synthesis add up to {asked:g}, more than synthetic_share {self.synthetic_share:g}; "
                "lower them or raise it"
            )
        return self

    @model_validator(mode="after")
    def _executor_is_described(self) -> Corpus:
        if self.executor == "slurm" and self.slurm is None:
            raise ValueError("executor 'slurm' needs a [corpus.slurm] section with the partition")
        return self
