"""What the stages of a run can be told: one frozen dataclass a group of settings, units in the help."""

import dataclasses
import pathlib
from typing import Literal

from jax_brcd.data import LABEL_FORMATS
from jax_brcd.settings.options import claiming, option
from jax_brcd.settings.recipes import RECIPES

MOST_EPOCHS = 10**6  # steps are counted in 32 bits

LARGEST = 2048  # pixels of a side that a model may be shown; more are taken for a slip


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and which of their views."""

    dataset: str = option("digits", "data set")
    data_dir: pathlib.Path | None = option(None, "folder of the data set; CIFAR-10 is downloaded into it when absent; lists "
                                           "(train.txt, database.txt, test.txt) and image folders lie in it")
    split: str = option("published", "protocol that says which images train, are searched and are queries; CIFAR-10 also has "
                        "cifar10-I, cifar10-II and cifar10-III")
    train_images: int | Literal["published", "all"] = option("published", "unlabelled images to train on: the published subset, "
                                                             "all, or how many of all, drawn by the seed", low=1)
    k: int | None = option(None, "ranks that mAP@k and precision@k look at", low=1)
    views: int = option(16, "augmented views an image that are encoded once and kept; naming them means no `fresh_views`",
                        low=2, high=2**16)
    fresh_views: bool = option(True, "draw new views each epoch, as published, instead of keeping `views` of them")
    view_recipe: str = option("brcd", "how views are drawn: brcd, as published; crovca, with wider crops and more hue, seldom "
                              "blurred and now and then solarised; or crop-flip, the image moved by up to an eighth of its "
                              "side over zeros, and flipped", choices=tuple(RECIPES))
    label_format: str | None = option(None, "how list files give labels: multi-hot, a 0 or 1 a class, or class-numbers, the "
                                      "number of the one class; to be told where an image has one label alone",
                                      choices=tuple(LABEL_FORMATS))
    max_bad_images: int = option(0, "image files that may be missing or corrupt; they are named and skipped", low=0)
    decode_workers: int | None = option(None, "processes that decode image files; 0 for none beside this one", low=0,
                                        high=2**10)
    resident_mib: int = option(2048, "MiB of training images kept on the device where views are drawn from pixels; more "
                               "of them travel a step at a time", low=0)
    cache_dir: pathlib.Path = option(pathlib.Path("~/.cache/jax_brcd"), "where finished stages, compiled programs, decoded "
                                     "images, kept features and downloads lie, for every run to use again")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The codes, and the student's contrastive objective."""

    bits: int = option(64, "length of the hash codes, in bits", low=1, high=2**16)
    temperature: float = option(0.3, "temperature of the student's contrastive terms", above=0)
    kl_weight: float = option(0.001, "weight of the student's Bernoulli KL term", low=0)


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The hashing teacher: a frozen backbone and a hash head."""

    teacher: str = option("vit_b_16", "teacher's backbone; or embeddings, a table of them under `embeddings`, whose student sees "
                          "images of its own size")
    teacher_weights: str = option("imagenet", "teacher's weights: a .safetensors or .pth file, a folder of an encoder or of "
                                  "weights in Hugging Face's layout, hf:USER/NAME or hf:USER/NAME@REVISION of its hub, a tag of the "
                                  "backbone ('imagenet' are torchvision's, 'pretrained' a hub's), 'held-out' (pretrained here on the "
                                  "data set's labelled held-out images) or 'random'; a hash head of as many `bits` that comes with "
                                  "them is kept")
    teacher_size: int | None = option(None, "pixels of the square that the teacher sees; none for what its backbone, or the encoder "
                                      "that it comes from, is meant for", low=1, high=LARGEST)
    embeddings: pathlib.Path | None = option(None, "folder of the tables of `teacher` embeddings: train, database and test as "
                                             ".npy, .safetensors or .parquet, a row an image")
    embeddings_dropout: float = option(0.1, "part of a row's features that is dropped in its second view, for objectives over "
                                       "`embeddings` that contrast two", low=0, high=0.99)
    teacher_objective: str = option("cibhash", "what the teacher's hash head learns, or is solved by")
    pretraining_epochs: int = option(30, "epochs of pretraining under `teacher_weights` held-out", low=0, high=MOST_EPOCHS)
    teacher_epochs: int = option(60, "epochs of the teacher's hash head; of a head that came with the weights further ones, 0 "
                                 "unless told", low=0, high=MOST_EPOCHS)
    teacher_lr: float = option(5e-4, "learning rate for the teacher's hash head", above=0)
    teacher_batch_size: int | None = option(None, "images a step of the teacher's hash head; as many as `batch_size` unless "
                                            "told", low=1, high=2**16)
    teacher_temperature: float = option(0.3, "temperature of the teacher's contrastive terms", above=0)
    teacher_kl_weight: float = option(0.001, "weight of the teacher's Bernoulli KL term", low=0)


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """The student and how long it learns."""

    student: str = option("resnet18", "student's backbone")
    student_weights: str = option("imagenet", "student's weights: a file, a folder, hf:USER/NAME, 'imagenet' or 'random', as "
                                  "`teacher_weights`")
    student_size: int | None = option(None, "pixels of the square that the student sees, in the colours that its backbone, or the "
                                      "encoder that it comes from, is meant for; none for the teacher's size and colours", low=1,
                                      high=LARGEST)
    train_backbone: bool = option(False, "train the student whole instead of its hash head alone")
    epochs: int = option(400, "epochs of distillation at most", low=0, high=MOST_EPOCHS)
    lr: float = option(1e-3, "learning rate for the student, of a schedule its highest", above=0)
    validation_interval: int = option(10, "epochs between validations of both searches", low=1)
    patience: int | None = option(5, "stop after more than this many validations without a gain on either search; under a "
                           "`lr_schedule` that ends with the run only where it is told", low=0)
    min_epochs: int | None = option(None, "epochs before an early stop; published: 80 for 16 bits, else none", low=0)


SAME, CLEAN = "same", "clean"  # views of a student's, and of the image as it is evaluated
EACH, BOTH = "each", "both"  # an encoder for each search, and one for both, which is then called so


@dataclasses.dataclass(frozen=True)
class LearningConfig:
    """How a student learns: what moves its weights, what it is shown of its teacher, and which of its states is kept."""

    optimizer: str = option("adam", "what moves the student's weights: adam, adamw, sgd, lion or lamb")
    lr_schedule: str = option("constant", "how the rate goes: constant; cosine, down to 0 after a warm-up; one-cycle, up from "
                              "and down to next to nothing; or step, down to a tenth again and again")
    warmup_epochs: float | None = option(None, "epochs over which the rate rises, of `lr_schedule` cosine (a twentieth of all "
                                         "unless told) and one-cycle (three tenths)", low=0)
    lr_step_epochs: float | None = option(None, "epochs after each of which `lr_schedule` step takes a tenth of the rate; a "
                                          "third of all unless told", above=0)
    weight_decay: float | None = option(None, "decoupled weight decay, of all but norms and biases; of sgd it is added to the "
                                        "gradient. Unless told 0.01, of sgd 5e-4, of lion 0.1, of adam none", low=0)
    sgd_momentum: float = option(0.9, "momentum of `optimizer` sgd", low=0, high=0.9999)
    clip_norm: float | None = option(None, "largest norm of the whole gradient; longer ones are scaled down to it", above=0)
    accumulate: int = option(1, "training steps whose mean gradient moves the weights once", low=1, high=2**16)
    layer_decay: float | None = option(None, "factor of the rate from each block of a whole student to the one before it; the "
                                       "hash head has the full rate", above=0, high=1)
    freeze_epochs: int = option(0, "first epochs in which the first blocks of a whole student stay as they are", low=0,
                                high=MOST_EPOCHS)
    freeze_blocks: int | None = option(None, "how many blocks these are, with all that stands before them; the whole backbone "
                                       "unless told", low=0)
    ema_decay: float | None = option(None, "decay a step of a moving average of a whole student's weights, which is validated "
                                     "and exported in their place; (1 + t) / (10 + t) after step t where that is lower",
                                     above=0, high=0.999999)
    own_objective: bool = option(True, "the student's own contrastive objective of two views beside the method's; without "
                                 "it the student encodes only the views that the method asks of it")
    teacher_view: str = option(SAME, "what the teacher sees: the same view as the student, or the clean image, encoded once",
                               choices=(SAME, CLEAN))
    teacher_neighbours: int = option(0, "training images nearest to an image by the teacher's features whose outputs are averaged "
                                     "with its own, where `teacher_view` is clean; 0 for its own alone", low=0, high=2**15)
    mixup: float = option(0.0, "parameter of the Beta distribution by which each view is mixed with another of its batch, and "
                          "so the teacher's outputs; 0 for no mixing", low=0)
    keep: str = option(EACH, "which states are kept and exported: each, the best of either search, or both, the best mean of "
                       "both, as one encoder", choices=(EACH, BOTH))


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How the run is carried out."""

    method: str = option("brcd", "what the student learns from the teacher; a sum of methods is written brcd+rkd")
    method_weights: str | None = option(None, "weight of each part of a sum of methods, as in 1,0.5")
    batch_size: int = option(64, "images a training step", low=1, high=2**16)
    dtype: str = option("float32", "arithmetic of the encoders; parameters, losses and codes stay float32",
                        choices=("float32", "bfloat16"))
    # Each stage makes one of its own of it, which must be a number of 32 bits: JAX would take larger ones for others
    seed: int = option(0, "the one seed of splits, heads, batches and views", low=0, high=(2**32 - 3) // 3)
    checkpoint_seconds: float = option(30.0, "seconds of training between checkpoints", low=0)
    compile_cache: bool = option(True, "keep compiled programs under `cache_dir`, so that a later run compiles nothing again")
    out: pathlib.Path | None = option(None, "run directory; the same command goes on with what it holds")
    processes: int = option(1, "processes of the run, one a host, that share `out` and `cache_dir`; each has all its "
                               "devices", low=1)
    process_id: int = option(0, "which of the processes this is; process 0 prints and writes", low=0)
    coordinator: str = option("127.0.0.1:9876", "HOST:PORT at which process 0 listens for the others")


STAGES = (DataConfig, ObjectiveConfig, TeacherConfig, StudentConfig, LearningConfig, RunConfig)
TITLES = ("data", "codes and objective", "teacher", "student", "how the student learns", "run")

for _title, _stage in zip(TITLES, STAGES, strict=True):
    claiming("the run")(_title, _stage)
