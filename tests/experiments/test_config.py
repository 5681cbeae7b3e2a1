"""Configs: strict reading, changes from the command line, and writing back."""

import hashlib
import tomllib
from pathlib import Path

import pytest

from pwgf_jax.experiments import ConfigError, build, dump, load
from pwgf_jax.experiments.config import fingerprint, parse, unfold

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
shipped = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


@shipped
def test_a_shipped_config_survives_being_written_and_read(path):
    config = load(path)
    assert parse(tomllib.loads(dump(config))) == config
    assert dump(parse(tomllib.loads(dump(config)))) == dump(config)


@shipped
def test_a_shipped_config_explains_itself(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#:schema ./pwgf.schema.json"
    assert lines[1].startswith("# ")
    assert lines[2].startswith("#")
    assert load(path).name == path.stem


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stepps=5", "unknown key stepps; allowed: name, steps, .*; did you mean steps"),
        ("arms.static.step_sise=1", "unknown key arms.static.step_sise; allowed: step_size.*; did you mean step_size"),
        ("arms.hessian.etap=1", "unknown key arms.hessian.etap; allowed: .*; did you mean eta_p"),
        ("problem.data.point=9", "unknown key problem.data.point; allowed: .*; did you mean points"),
        ("problem.options.ridge=1", "unknown key problem.options.ridge; allowed: prefactor, activation, chunk_size"),
        ("steps=many", 'steps: given "many" .a string.; give a whole number'),
        ("steps=2.5", "steps: given 2.5 .a number.; give a whole number"),
        ("steps=true", "steps: given true .a boolean.; give a whole number"),
        ("steps=0", "steps = 0; give at least 1"),
        ("seeds=0", "seeds = 0; give at least 1"),
        ("seed=-1", "seed = -1; give a whole number from 0"),
        ("record_every=0", "record_every = 0; give at least 1"),
        ("dtype=float16", 'dtype: given "float16" .a string.; give one of "float32", "float64"'),
        ("name=a/b", 'name: given "a/b" .a string.; use letters'),
        ("name=../b", 'name: given "../b" .a string.; use letters'),
        ('name="a\\u0000b"', r'name: given "a\\u0000b" .a string.; use letters'),
        ("arms.x" + 300 * "y" + '={flow="wgf", step_size=1}', "arms: given .xyyy.*; use letters, .*, at most 100"),
        ("steps=2147483648", "steps: given 2147483648 .a whole number.; give a whole number below 2147483648"),
        ("steps=2147483647", "steps = 2147483647; give less than 1073741824"),
        ("seed=0x1" + 5000 * "0", "seed: given 0x10000.* .a whole number.; give a whole number below"),
        ("seed=" + 5000 * "9", "--set: given .seed=999.*; no sense in it: numbers have up to 4300 digits"),
        ("seed=" + 2000 * "[", "--set: given .seed=....*; no sense in it: .* nested up to some hundred deep"),
        ("arms.static.step_size=1e39", "arms.static.step_size = 1e.39; float32 holds up to 3.4e.38: give dtype"),
        ("problem.start.jitter=-1e39", "problem.start.jitter = -1e.39; float32 holds"),
        ("snapshots=[0, 8]", r"snapshots = \[0, 8\]; no arm takes more than 6 steps"),
        ("problem.start.kind=[1]", r"problem.start.kind: given \[1\] .a list.; allowed: gaussian"),
        ("arms.static.flow={a=1}", "arms.static.flow: given {a = 1} .a table.; allowed: .*wgf"),
        ("arms.static.flow=2026-01-01", "arms.static.flow: given 2026-01-01 .a date or time.; allowed: .*wgf"),
        ("problem.data.source=[]", r"problem.data.source: given \[\] .a list.; allowed: teacher"),
        ('problem.functional="a\\u0000.py:F"', "problem.functional: given .*; no file has a zero byte in its name"),
        ("problem.a\nb=3", r'unknown key problem."a\\nb"; allowed'),
        ("problem.particles=0", "problem.particles = 0; give at least 1"),
        ("problem.functional=icfll", 'problem.functional: given "icfll" .*; allowed: .*; did you mean icfl'),
        ("problem.functional=mine.py", 'say which one in it: "mine.py:NAME"'),
        ("problem.start.kind=gausian", "problem.start.kind: .*; did you mean gaussian"),
        ("problem.data.source=techer", "problem.data.source: .*; did you mean teacher"),
        ("arms.static.flow=wfg", "arms.static.flow: .*; did you mean wgf"),
        ("arms.static.step_size=fast", "arms.static.step_size: .* a number or a table that names an optax optimizer"),
        ("arms.static.step_size=nan", "arms.static.step_size: given nan; give a finite number"),
        ('arms.static.step_size={optimizer="adm"}', "arms.static.step_size.optimizer: .*; did you mean adam"),
        ('arms.static.step_size={optimizer="adam"}', "missing key arms.static.step_size.learning_rate; give a number"),
        ("arms.static=3", "arms.static: given 3 .a whole number.; give a table"),
        ("arms={}", "arms is empty"),
        ("arms.static.steps=0", "arms.static.steps = 0; give at least 1"),
        ("arms.static.steps=many", 'arms.static.steps: given "many"'),
        ("targets=3", "targets: given 3 .a whole number.; give a list of values"),
        ("problem.same_data=1", "problem.same_data: given 1 .a whole number.; give true or false"),
        ('vary={key="problem.particles"}', "missing key vary.values"),
        ('vary={key="problem.particels", values=[4]}', "unknown key problem.particels; .*; did you mean particles"),
        ('vary={key="problem.particles", values=[4, 0]}', "problem.particles = 0; give at least 1"),
        (
            'vary={key="problem.particles", values=[4, 4]}',
            "vary.values: given .4, 4. .*; give at least one, all different",
        ),
        ('vary={key="arms.static.step_size", values=[1, 1.0]}', "vary.values: given .1, 1.0. .*; .* all different"),
        ('vary={key="problem", values={"../x"={}}}', r'vary.values: given "../x" .a string.; .* without slashes'),
        ('vary={key="seeds", values=[4]}', 'vary.key: given "seeds"; give a key below problem or below an arm'),
        ('vary={key="arms.statik.steps", values=[4]}', 'vary.key: given "arms.statik.steps"; arms are static, hessian'),
        ("steps.a=1", "--set: steps: given 6"),
        ("steps", "--set: given .steps. .a string.; write a.b=value"),
    ],
)
def test_what_is_wrong_with_a_config_is_said(tiny, setting, message):
    with pytest.raises(ConfigError, match=message):
        load(tiny, ["dtype=float32", setting])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("problem.particles=5", "problem.start: problem.particles = 5; antithetic neurons come in pairs"),
        ("problem.data.points=0", "problem.data: points = 0; give at least 1"),
        ("problem.data.activation=tan", "problem.data: activation: .*; did you mean tanh"),
        ("problem.options.activation=tan", "problem.options: activation='tan'; choose"),
        ("problem.options.chunk_size=0", "problem.options: chunk_size=0"),
        ("problem.start.scale=0", "problem.start: scale = 0.0; give a positive number"),
        ("problem.start.kind=icfl_saddle", "problem.start: .* needs problem.data.source = .sign_pairs."),
        ("arms.static.step_size=-1", "arms.static: step_size=-1.0; give a positive number"),
        ("problem.particles=2000000000", "problem.particles: the particles of 3 seeds would take .*; give fewer"),
        ("problem.data.inputs=2000000000", "problem.data: the data of 3 seeds would take .*; give fewer points"),
        ("seeds=1000000000", "record_every: 5 records of 1000000000 seeds would take .*; give a larger one, or fewer"),
        ("arms.hessian.eps=-1", "arms.hessian: gradient_trigger: eps=-1.0"),
        ("arms.hessian.k_thres=0", "arms.hessian: gradient_trigger: k_thres=0"),
        ("arms.hessian.k_thres=2147483647", "arms.hessian: gradient_trigger: k_thres=2147483647; .* 1 to 1073741824"),
        ("arms.hessian.eta_p=-1", "arms.hessian: hessian_noise: eta_p=-1"),
        ("arms.static.batch_size=9", "arms.static: batch: size=9; there are 8 data points"),
    ],
)
def test_values_that_constructors_refuse_are_named_by_their_key(tiny, setting, message):
    with pytest.raises(ConfigError, match=f"tiny.toml: {message}"):
        build(load(tiny, [setting]))


@pytest.mark.parametrize(
    ("values", "arm", "message"),
    [
        ("[5, 6]", "a-5", 'a at 5 and arm a-5 would both be named "a-5"; rename one'),
        ('["x/y", "x_y"]', "b", 'a at x/y and a at x_y would both be named "a-x_y"; rename one'),
        ('["/one/d.csv", "/two/d.csv"]', "b", 'a at d.csv and a at d.csv would both be named "a-d.csv"'),
        (f'["{"x" * 100}"]', "b", "given .a-xxx.*; use letters, digits, - and _, at most 100"),
    ],
)
def test_no_two_arms_have_one_name(tiny, values, arm, message):
    one = '{flow="wgf", step_size=1.0}'
    with pytest.raises(ConfigError, match=f"vary.values: {message}"):
        load(tiny, [f"arms={{a={one}, {arm}={one}}}", f'vary={{key="arms.a.batch_size", values={values}}}'])


def test_what_is_no_toml_is_said(tiny):
    for text, message in {
        "a = " + 2000 * "[": "no sense in it: .* nested",
        "a = " + 5000 * "9": "no sense in it: numbers have up to 4300 digits",
        "a = ": "not valid TOML",
        ".".join(5000 * "a") + " = 1": "nested more than 50 deep",
        "vary.values." + ".".join(200 * "a") + " = 1": "nested more than 50 deep",
    }.items():
        tiny.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load(tiny)
    for name, message in {
        "a\0b": "cannot be read",
        300 * "a": "cannot be read",
        str(tiny.parent): "cannot be read",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load(name)


def test_a_step_that_cannot_fit_is_refused(tmp_path):
    """A functional of one's own that makes a matrix of its particles; sums of ours are in tiles."""
    (tmp_path / "pairs.py").write_text(
        "import jax.numpy as jnp\ndef F(mu):\n    return mu.weights @ jnp.tanh(mu.points @ mu.points.T) @ mu.weights\n",
        encoding="utf-8",
    )
    file = tmp_path / "pairs.toml"
    file.write_text(
        'name = "pairs"\nsteps = 2\nseeds = 3\ndtype = "float64"\n'
        '[problem]\nfunctional = "pairs.py:F"\nparticles = 8000000\n'
        '[problem.start]\nkind = "gaussian"\ndimension = 2\n[arms.static]\nflow = "wgf"\nstep_size = 0.1\n',
        encoding="utf-8",
    )
    said = r"arms.static: a step makes float64\[8000000,8000000\] for every seed .3., which would take 1[.\d]* PB, of"
    with pytest.raises(ConfigError, match=said):
        build(load(file))


def test_entropy_needs_neighbours(tiny):
    settings = ["problem.particles=2", 'arms.hot={flow="langevin", step_size=0.1, temperature=0.5}']
    with pytest.raises(ConfigError, match=r"problem.particles: given 2; arms.hot has a temperature.*: give at least 4"):
        build(load(tiny, settings))


def test_an_unknown_key_is_answered_in_full(tiny):
    with pytest.raises(ConfigError) as caught:
        load(tiny, ["problem.start.jiter=1"])
    assert str(caught.value) == f"{tiny}: unknown key problem.start.jiter; allowed: scale, jitter; did you mean jitter?"


def test_missing_keys_and_tables_are_named(tiny):
    text = tiny.read_text(encoding="utf-8")
    for cut, message in {
        "steps = 6\n": "missing key steps; give a whole number",
        "step_size = 0.05\n": "missing key arms.static.step_size",
        'kind = "antithetic"\n': "missing key problem.start.kind; allowed: gaussian",
        'source = "teacher"\n': "missing key problem.data.source; allowed: teacher",
    }.items():
        tiny.write_text(text.replace(cut, "", 1), encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load(tiny)
    tiny.write_text(text[: text.index("[problem.data]")] + text[text.index("[problem.start]") :], encoding="utf-8")
    with pytest.raises(ConfigError, match=r"missing table problem.data; matrix_factorization needs inputs and targets"):
        load(tiny)


def test_settings_are_toml_and_bare_words_are_strings(tiny):
    config = load(tiny, ["seeds=4", "seed=7", "problem.start.jitter=0", "problem.options.activation=erf", "name='x'"])
    assert (config.seeds, config.seed, config.name) == (4, 7, "x")
    assert config.problem.start.arguments["jitter"] == 0.0
    assert config.problem.options.activation == "erf"


def test_settings_make_tables_that_are_not_there(tiny):
    config = load(tiny, ["arms.new.flow=wgf", "arms.new.step_size=1"])
    assert config.arms["new"].arguments == {"step_size": 1.0}


def test_step_sizes_from_optax(tiny):
    schedule = '{schedule = "cosine_decay_schedule", init_value = 0.1, decay_steps = 5}'
    config = load(tiny, [f'arms.static.step_size={{optimizer = "adam", learning_rate = {schedule}}}'])
    given = config.arms["static"].arguments["step_size"]
    assert given["optimizer"] == "adam"
    assert given["b1"] == 0.9
    assert given["learning_rate"]["decay_steps"] == 5
    assert parse(tomllib.loads(dump(config))) == config
    build(config)


def test_defaults_are_written_out(tiny):
    assert 'sampler = "direct"' in dump(load(tiny))


def test_the_fingerprint_sees_every_change(tiny):
    prints = {fingerprint(load(tiny, [setting])) for setting in ("seed=0", "seed=1", "problem.start.scale=1")}
    assert len(prints) == 3
    assert fingerprint(load(tiny)) == fingerprint(load(tiny, ["seed=0"]))


def test_the_fingerprint_is_of_what_is_stored(tiny):
    stored = dump(load(tiny))
    assert fingerprint(stored) == fingerprint(load(tiny))
    earlier = stored.replace('sampler = "direct"\n', "")  # by a version that had no such argument
    assert earlier != stored
    assert load(tiny, ["arms.hessian.sampler=direct"]) == parse(tomllib.loads(earlier))
    assert fingerprint(earlier) == hashlib.sha256(earlier.encode()).hexdigest()[:16]


def own(folder, vary=""):
    """A config with an own functional that has neighbours, on own data."""
    (folder / "parts").mkdir()
    for name, text in {
        "own.py": "import helper\nfrom parts import inner\n\nF = lambda x, y: None\n",
        "helper.py": "import numpy\n\n\ndef late():\n    import later\n",
        "later.py": "",
        "unseen.py": "",
        "parts/__init__.py": "",
        "parts/inner.py": "",
        "data.csv": "x,y\n1,2\n",
        "more.csv": "x,y\n1,2\n",
        "own.toml": f"""name = "own"
steps = 1
{vary}

[problem]
functional = "own.py:F"
particles = 2
data = {{ source = "data.csv", inputs = ["x"], targets = ["y"] }}
start = {{ kind = "gaussian" }}

[arms]
a = {{ flow = "wgf", step_size = 1.0 }}
""",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "own.toml"


def test_the_fingerprint_sees_what_own_code_imports(tmp_path):
    config = own(tmp_path)
    seen = [fingerprint(load(config))]
    for name in ("own.py", "helper.py", "later.py", "parts/__init__.py", "parts/inner.py", "data.csv"):
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write("\n# changed\n")
        seen.append(fingerprint(load(config)))
    assert len(set(seen)) == 7
    (tmp_path / "unseen.py").write_text("changed", encoding="utf-8")
    assert fingerprint(load(config)) == seen[-1]
    # Version 0.1.0 hashed what the config names, and its folders go on.
    files = [(tmp_path / name).read_bytes() for name in ("own.py", "data.csv")]
    first = hashlib.sha256(b"".join([dump(load(config)).encode(), *files])).hexdigest()[:16]
    assert seen[-1].startswith(first)
    assert len(seen[-1]) == 32
    (tmp_path / "own.py").write_text("no python", encoding="utf-8")
    assert fingerprint(load(config)) not in seen


def test_varied_files_are_found_from_elsewhere(tmp_path):
    config = load(own(tmp_path, 'vary = { key = "problem.data.source", values = ["data.csv", "more.csv"] }'))
    assert [part.value for part in unfold(config)] == ["data.csv", "more.csv"]
    assert [list(part.config.arms) for part in unfold(config)] == [["a-data.csv"], ["a-more.csv"]]
    stored = parse(tomllib.loads(dump(config)), "elsewhere/config.toml")
    given = [part.config.problem.data for part in unfold(stored)]
    assert [data and data.name for data in given] == [str(tmp_path / name) for name in ("data.csv", "more.csv")]
    before = fingerprint(config)
    (tmp_path / "more.csv").write_text("x,y\n3,4\n", encoding="utf-8")
    assert fingerprint(config) != before


def test_a_varied_key_unfolds_into_arms_and_survives_being_written(tiny):
    config = load(tiny, ['vary={key="arms.hessian.eta_p", values=[0.1, 0.2]}', "arms.static.steps=9"])
    assert parse(tomllib.loads(dump(config))) == config
    first, second = unfold(config)
    assert (list(first.config.arms), list(second.config.arms)) == (["hessian-0.1", "static"], ["hessian-0.2"])
    assert second.config.arms["hessian-0.2"].arguments["eta_p"] == 0.2
    assert (first.config.steps_of("static"), first.config.steps_of("hessian-0.1")) == (9, 6)


def test_a_key_is_varied_in_every_arm(tiny):
    config = load(tiny, ['vary={key="arms.*.step_size", values=[0.3, 0.4]}'])
    first, second = unfold(config)
    assert list(first.config.arms) == ["static-0.3", "hessian-0.3"]
    assert [arm.arguments["step_size"] for arm in second.config.arms.values()] == [0.4, 0.4]
    with pytest.raises(ConfigError, match=r"unknown key arms\.static\.eps"):
        load(tiny, ['vary={key="arms.*.eps", values=[0.3, 0.4]}'])


def test_jumps_of_another_flow_are_read_like_those_of_pwgf(tiny):
    newton = 'arms.n={flow="saddle_free_newton", step_size=1.0, beta=1.0, perturbation={eps=1, eta_p=0, k_thres=2}}'
    with pytest.raises(ConfigError, match=r"missing key arms\.n\.perturbation\.f_thres; give a number"):
        load(tiny, [newton])
    jumps = load(tiny, [newton, "arms.n.perturbation.f_thres=0"]).arms["n"].arguments["perturbation"]
    assert jumps == {"eps": 1.0, "eta_p": 0.0, "k_thres": 2, "f_thres": 0.0, "decay": 0.0, "sampler": "direct"}


def test_same_data_gives_every_seed_the_data_of_the_first(tiny):
    experiment = build(load(tiny, ["problem.same_data=true"]))
    alone = build(load(tiny))
    (F, mu), (G, nu), (first, _) = (e.problem(e.keys[i]) for e, i in ((experiment, 0), (experiment, 1), (alone, 0)))
    assert (F.inputs == G.inputs).all()
    assert not (mu.points == nu.points).all()
    assert (F.inputs == first.inputs).all()
