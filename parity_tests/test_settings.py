"""Settings: no two share a name, Python and the command line read the same values, configurations are compared by effect."""

import ast
import dataclasses
import pathlib
import re

import numpy as np
import pytest

import jax_brcd
from jax_brcd.methods import METHODS, BaseMethod
from jax_brcd.methods.sums import part_settings
from jax_brcd.models import BACKBONES
from jax_brcd.runtime.errors import InputError, UnknownName
from jax_brcd.runtime.registry import Registry
from jax_brcd.settings import options
from jax_brcd.settings.command_line import flag, one_line, spelled
from jax_brcd.settings.options import option, plain_type, settings_of
from jax_brcd.settings.presets import PRESETS
from jax_brcd.settings.stages import STAGES, StudentConfig
from jax_brcd.stages.configuration import create_config, defaults, differences, parse_command_line, unusual
from jax_brcd.teachers.objectives import OBJECTIVES

PACKAGE = pathlib.Path(jax_brcd.__file__).parent
COMMANDS = {"distill", "teacher", "student", "evaluate", "index", "search", "serve", "export"}


class Nothing(BaseMethod):
    """A method that learns nothing."""

    def loss(self, parameters, memory, batch):
        return 0.0, memory, {}


def with_field(name, default=1.0, base=object, **about):
    """A dataclass with one setting."""
    fields = [(name, type(default), option(default, "a setting", **about))]
    return dataclasses.make_dataclass("Kind", fields, bases=(base,), frozen=True)


@pytest.fixture
def registries(monkeypatch):
    """Registries of a test's own over the names that are taken now."""
    monkeypatch.setattr(options, "_OWNERS", dict(options._OWNERS))
    for registry in (METHODS, OBJECTIVES):
        monkeypatch.setattr(registry, "_entries", dict(registry))
    return {"a method": METHODS, "a teacher objective": OBJECTIVES}


# No two settings share a name

@pytest.mark.parametrize(("registry", "name", "owner"), [
    (METHODS, "temperature", "the run"), (METHODS, "lr", "the run"), (METHODS, "out", "the run"),
    (METHODS, "preset", "the run"), (METHODS, "greedyhash_penalty", "a teacher objective"),
    (OBJECTIVES, "temperature", "the run"),
    (OBJECTIVES, "teacher_epochs", "the run"), (OBJECTIVES, "margin", "a method"), (OBJECTIVES, "rkd_angle_weight", "a method"),
])
def test_a_setting_of_anothers_name_is_refused_where_it_is_registered(registries, registry, name, owner):
    before = dict(options._OWNERS)
    with pytest.raises(InputError, match=f"{name}: .*'mine'.* has a setting of a name that {owner} has") as refusal:
        registry.register("mine")(with_field(name))
    assert refusal.value.field == name and "mine" not in registry and options._OWNERS == before


def test_a_setting_of_the_run_may_not_take_a_methods_or_an_objectives_name():
    for name in ("margin", "itq_iterations"):
        with pytest.raises(InputError, match=f"{name}: the run"):
            options.claiming("the run")("more", with_field(name))


@pytest.mark.parametrize("order", [("a method", "a teacher objective"), ("a teacher objective", "a method")])
def test_the_second_to_come_is_refused_whichever_it_is(registries, order):
    first, second = order
    registries[first].register("first")(with_field("quite_new"))
    with pytest.raises(InputError, match=f"quite_new: {second} .* that {first} has"):
        registries[second].register("second")(with_field("quite_new"))


def test_a_methods_setting_as_part_of_a_sum_has_a_name_of_its_own_too(registries):
    with pytest.raises(InputError, match="batch_size: a method .'batch'. has a setting of a name that the run has"):
        METHODS.register("batch")(with_field("size"))
    METHODS.register("mine")(with_field("push"))
    with pytest.raises(InputError, match="mine_push: a teacher objective"):
        OBJECTIVES.register("other")(with_field("mine_push"))


def test_methods_may_share_a_name_and_each_keeps_its_own_default_and_bounds(registries):
    METHODS.register("one")(with_field("shared", 1.0, Nothing, high=2))
    METHODS.register("two")(with_field("shared", 7, Nothing))
    one, two = (create_config(method=name).method for name in ("one", "two"))
    assert (one.shared, two.shared) == (1.0, 7)
    assert parse_command_line("p", "d", ["--method", "two", "--shared", "9"]).method.shared == 9
    assert parse_command_line("p", "d", ["--method", "one", "--shared", "1.5"]).method.shared == 1.5
    with pytest.raises(InputError, match="shared 9.0: too large"):
        create_config(method="one", shared=9)
    with pytest.raises(InputError, match="shared: '1.5' is no whole number"):
        create_config(method="two", shared="1.5")


def test_a_run_hands_no_method_a_setting_of_its_own():
    config = create_config(temperature=0.7, method="kl", distillation_temperature=3)
    assert config.objective.temperature == 0.7 and config.teacher.teacher_temperature == 0.3
    assert config.method.distillation_temperature == 3.0


# Python and the command line read the same values

def every_setting():
    """Whose, what else must be given, the field: of every stage, objective and method, alone and in a sum."""
    for stage in STAGES:
        yield from ((stage.__name__, {}, field) for field in settings_of(stage))
    for registry, chooser in ((OBJECTIVES, "teacher_objective"), (METHODS, "method")):
        for name, kind in registry.items():
            yield from ((name, {chooser: name}, field) for field in settings_of(kind))
    for name, kind in part_settings(METHODS).items():
        chosen = {"method": f"none+{name}" if name != "none" else "none+kl"}
        yield from ((f"{name} in a sum", chosen, field) for field in settings_of(kind))


SETTINGS = list(every_setting())
NAMED = {"dataset": "cifar10", "teacher": "vit_b_32", "student": "resnet34", "teacher_objective": "itq", "method": "kl+rkd",
         "method_weights": "1,0.5", "optimizer": "lion", "lr_schedule": "one-cycle"}
USUAL = {int: "3", float: "0.5", str: "some words", pathlib.Path: "~/some place"}
TYPED = {int: (3, 3.0, np.int64(3), np.uint8(3), np.float32(3)), float: (0.5, np.float32(0.5), np.float64(0.5)),
         pathlib.Path: (pathlib.Path("~/some place"),), str: ()}
WRONG = {int: (True, np.bool_(True), 2.5, np.float32(2.5), "2.5", "x", "", [1], float("inf"), 1j, 10**400, "9" * 400),
         float: (True, "x", "", [0.5], 10**400, b"0.5"), bool: (1, 0, "yes", "true", [True]),
         pathlib.Path: (3, True, ["x"], "", b"x"), str: (3, True, ["x"], "", b"x")}


def text_of(field):
    """A value that the command line takes, other than the default where it can be."""
    if field.metadata["choices"]:
        return field.metadata["choices"][-1]
    return NAMED.get(field.name, USUAL[plain_type(field.type)])


def beside(field, others):
    return others | ({"method": "kl+rkd"} if field.name == "method_weights" else {})


@pytest.mark.parametrize("place", range(len(SETTINGS)), ids=[f"{owner} {field.name}" for owner, _, field in SETTINGS])
def test_a_value_from_python_is_the_command_lines(place):
    _, others, field = SETTINGS[place]
    name, kind, others = field.name, plain_type(field.type), beside(field, others)
    words = [word for other, value in others.items() for word in (flag(other), value)]
    if kind is bool:
        for value, option_ in ((True, flag(name)), (False, flag("no_" + name))):
            told = parse_command_line("p", "d", [*words, option_])
            assert told == create_config(**others, **{name: value}) == create_config(**others, **{name: np.bool_(value)})
        return
    text = text_of(field)
    told = parse_command_line("p", "d", [*words, flag(name), text])
    assert told == create_config(**others, **{name: text}) and told.flat() == create_config(**others, **{name: text}).flat()
    value = told.flat()[name]
    assert isinstance(value, (kind, str) if kind is pathlib.Path else kind) and (name == "cache_dir" or str(value) == text)
    for typed in TYPED[kind] if text == USUAL[kind] else ():
        assert create_config(**others, **{name: typed}) == told
    for word in options.words_of(field.type):
        assert create_config(**others, **{name: word}) == parse_command_line("p", "d", [*words, flag(name), word])


@pytest.mark.parametrize("place", range(len(SETTINGS)), ids=[f"{owner} {field.name}" for owner, _, field in SETTINGS])
def test_a_value_of_another_type_is_refused_by_name(place):
    _, others, field = SETTINGS[place]
    others = beside(field, others)
    wrong = WRONG[plain_type(field.type)]
    may_be_nothing = type(None) in options._parts(field.type)
    for value in (*wrong, *(() if may_be_nothing else (None,))):
        with pytest.raises(InputError) as refusal:
            create_config(**{**others, field.name: value})
        assert refusal.value.field == field.name, (value, str(refusal.value))
        assert "\n" not in str(refusal.value) and field.name in str(refusal.value)
    if may_be_nothing:
        assert create_config(**{**others, field.name: None}).flat()[field.name] is None


@pytest.mark.parametrize(("settings", "line"), [
    ({"bits": True}, "bits: 'True' is no whole number"), ({"bits": 2.5}, "bits: '2.5' is no whole number"),
    ({"lr": "fast"}, "lr: 'fast' is no number"), ({"out": 3}, "out 3: no path; give one"),
    ({"bits": None}, "bits: 'None' is no whole number"),
    ({"split": None}, "split None: no text; give one"), ({"out": ""}, "out '': no path; give one"),
    ({"train_backbone": 1}, "train_backbone 1: neither True nor False; give one of them"),
    ({"clusters": "x"}, "clusters: 'x' is no whole number or 'auto'"), ({"bits": 0}, "bits 0: too small; give 1 or more"),
    ({"seed": 2**32}, f"seed {2**32}: too large; give 1431655764 or less"),
    ({"lr": float("nan")}, "lr nan: not a finite number; give one"),
    ({"dtype": "flaot32"}, "unknown value of dtype 'flaot32': did you mean 'float32'? known: bfloat16, float32"),
])
def test_what_a_refusal_says(settings, line):
    (name, value), = settings.items()
    with pytest.raises(ValueError) as refusal:
        create_config(**settings)
    assert str(refusal.value) == line and refusal.value.field == name
    assert refusal.value.value in (value, repr(value)) or value != value
    assert one_line(refusal.value).replace(flag(name), name) == line


# Errors

@pytest.mark.parametrize(("settings", "field", "message"), [
    ({"epocs": 3}, "epocs", "unknown setting 'epocs': did you mean 'epochs'?"),
    ({"dataset": "cifar"}, "dataset", "unknown data set 'cifar': did you mean 'cifar10'?"),
    ({"teacher": "vit_b16"}, "teacher", "unknown backbone 'vit_b16': did you mean 'vit_b_16'?"),
    ({"student": "resnet19"}, "student", "unknown backbone 'resnet19': did you mean 'resnet18'?"),
    ({"method": "brdc"}, None, "unknown method 'brdc': did you mean 'brcd'?"),
    ({"teacher_objective": "cib"}, None, "unknown teacher objective 'cib': did you mean 'cibhash'?"),
    ({"preset": "digit"}, None, "unknown preset 'digit': did you mean 'digits'?"),
])
def test_an_unknown_name_is_a_key_error_that_says_the_nearest(settings, field, message):
    with pytest.raises(KeyError) as refusal:
        create_config(**settings)
    assert isinstance(refusal.value, UnknownName) and isinstance(refusal.value, ValueError)
    assert str(refusal.value).startswith(message)
    assert refusal.value.field == field and refusal.value.value in settings.values()


def test_registries_answer_as_mappings_do():
    for registry in (METHODS, OBJECTIVES, BACKBONES, PRESETS, Registry("nothing")):
        for unknown in ("x", "", None, 3, ("brcd",)):
            assert registry.get(unknown) is None and registry.get(unknown, 1) == 1 and unknown not in registry
            with pytest.raises(KeyError, match=f"unknown {registry.kind}"):
                registry[unknown]


def test_a_setting_of_another_method_or_objective_is_refused():
    with pytest.raises(InputError, match="alpha: not a setting of method 'kl'") as refusal:
        create_config(method="kl", alpha=0.5)
    assert refusal.value.field == "alpha"
    with pytest.raises(InputError, match="itq_iterations: not a setting of teacher objective 'cibhash'"):
        create_config(itq_iterations=5)


def test_an_error_is_spelled_as_options_by_commands_alone():
    error = InputError("more than `resident_mib` holds; give less", field="batch_size", value=64)
    assert str(error) == "batch_size 64: more than resident_mib holds; give less"
    assert one_line(error) == "--batch-size 64: more than --resident-mib holds; give less"
    assert spelled("`train_images` all, not `that one`") == "--train-images all, not `that one`"
    assert str(InputError("no field")) == "no field" and str(InputError("twice 'a'", field="k", value="a")) == "k: twice 'a'"


def strings(path):
    """Every text in a module, also the parts of f-strings and docstrings."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_no_module_below_the_commands_names_an_option():
    guilty = [(str(path.relative_to(PACKAGE)), text) for path in PACKAGE.rglob("*.py")
              if path != PACKAGE / "settings" / "command_line.py" and path.name != "__main__.py"
              and not (path.parent == PACKAGE and path.stem in COMMANDS)
              for text in strings(path) if re.search(r"(^|[^-\w])--([a-z]|$)", text)
              and not text.startswith("--xla_") and text != "--"]  # a dashed line
    assert guilty == []


# Comparing and telling

def test_settings_that_came_later_count_as_their_defaults():
    ours, older = create_config(method="kl").compared(), create_config(method="kl").compared()
    for later in ("teacher_temperature", "max_bad_images", "method_weights", "distillation_temperature"):
        del older[later]
    assert differences(ours, older) == differences(older, ours) == {}
    assert differences(create_config(method="kl", max_bad_images=5).compared(), older) == {"max_bad_images": (0, 5)}
    in_sum = create_config(method="kl+rkd").compared()
    fewer = {name: value for name, value in in_sum.items() if name != "rkd_angle_weight"}
    assert differences(in_sum, fewer) == {}
    assert list(differences(create_config(method="kl+rkd", rkd_angle_weight=9.5).compared(), fewer)) == ["rkd_angle_weight"]


def test_settings_that_are_gone_are_named():
    ours = create_config().compared()
    assert differences(ours, {**ours, "old_setting": 5}) == {"old_setting": (5, None)}


def test_every_other_setting_that_differs_is_named_with_both_values():
    ours, theirs = create_config(bits=16, lr=0.5).compared(), create_config().compared()
    assert differences(ours, theirs) == {"bits": (64, 16), "lr": (2e-3, 0.5)}


@pytest.mark.parametrize(("schedule", "told"), [("constant", {"patience": (5, None)}), ("cosine", {}), ("no longer there",
                                                {"patience": (5, None)})])
def test_a_patience_that_was_told_stands_for_none_only_where_a_schedule_leaves_none(schedule, told):
    ours = create_config(patience=None).compared() | {"lr_schedule": schedule}
    assert differences(ours, ours | {"patience": 5}) == told
    assert differences(ours | {"patience": 5}, ours) == {"patience": (None, 5)}


def test_where_a_run_lies_is_not_compared():
    assert create_config(out="a", cache_dir="b", checkpoint_seconds=1, data_dir="c").compared() == create_config().compared()


def test_a_default_is_that_of_the_method_and_objective_that_are_chosen(registries):
    METHODS.register("one")(with_field("shared", 1.0, Nothing))
    METHODS.register("two")(with_field("shared", 7.0, Nothing))
    assert [defaults({"method": name}).get("shared") for name in ("one", "two", "kl", "gone")] == [1.0, 7.0, None, None]
    assert defaults({"method": "one+two"})["two_shared"] == 7.0 and "shared" not in defaults({"method": "one+two"})
    assert "itq_iterations" not in defaults({}) and "itq_iterations" in defaults({"teacher_objective": "itq"})
    assert defaults({})["bits"] == 64 and defaults({})["cache_dir"] == "~/.cache/jax_brcd" and defaults({})["alpha"] == 0.8
    one, two = ({"method": name, "shared": value} for name, value in (("one", 1.0), ("two", 7.0)))
    assert differences({"method": "one"}, one) == differences({"method": "two"}, two) == {}
    assert differences({"method": "kl"}, one) == {"method": ("one", "kl")}
    assert differences(two, {"method": "one"}) == {"method": ("one", "two"), "shared": (1.0, 7.0)}


def test_the_unusual_settings_are_those_that_are_not_at_their_defaults():
    assert unusual(StudentConfig()) == {}
    changed = dataclasses.replace(StudentConfig(), lr=0.5, epochs=3)
    assert unusual(changed) == {"lr": 0.5, "epochs": 3} and unusual(changed, without=["epochs", "patience"]) == {"lr": 0.5}
    assert unusual(create_config(out="x").run) == {"out": "x"}


def test_a_configuration_comes_back_from_what_a_run_keeps_of_it():
    config = create_config(bits=16, method="kl+rkd", kl_distillation_weight=2, out="~/x", method_weights="1,2")
    again = create_config(**config.flat())
    assert again.flat() == config.flat() and again.method == config.method
