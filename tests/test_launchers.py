"""What the launchers of clusters would run: exact words, whatever they are given."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

GIVEN = ("--config=a.py", "--workdir=w")
TPU = {"TPU_NAME": "faces", "TPU_ZONE": "us-west4-a", "TPU_TYPE": "v5litepod-64"}
TPU |= {"TMPDIR": "/scratch"}
AT = "--zone=us-west4-a"
PACKED = "/scratch/jaxface.tar.gz"
GO = "gcloud compute tpus tpu-vm"
SETUP = [
    f"git archive --format=tar.gz --output={PACKED} HEAD",
    f"{GO} scp {PACKED} faces:jaxface.tar.gz --worker=all {AT}",
    f"{GO} ssh faces --worker=all --command='command -v python3.11 || (sudo apt-get -q"
    f" update && sudo apt-get -qy install python3.11-venv)' {AT}",
    f"{GO} ssh faces --worker=all --command='mkdir -p jaxface && tar xzf"
    " jaxface.tar.gz -C jaxface && cd jaxface && PYTHON=python3.11 JAXFACE_EXTRAS=tpu"
    " bash -euc"
    f""" '"'"'source launch/env.sh'"'"'' {AT}""",
]
CREATE = [
    f"{GO} create faces --accelerator-type=v5litepod-64 --version=v2-alpha-tpuv5-lite"
    f" --spot {AT}"
]
RUN = [
    f"{GO} ssh faces --worker=all --command='cd jaxface && .venv/bin/python"
    f" launch/train.py --coordinator=auto --config=a.py --workdir=w' {AT}"
]
DELETE = [f"{GO} delete faces --quiet {AT}"]
DESCRIBE = [f"{GO} describe faces '--format=value(state)' {AT}"]
TAIL = [
    f"{GO} ssh faces --worker=0 --command='tail -n 50 -F"
    f" /mnt/run/logs/process-0.log' {AT}"
]
HOSTILE = [
    "--config=configs/a.py:faces=my faces",
    '--config.model.name="iresnet(stages=(1,), widths=(4,))"',
    "--workdir=/mnt/it's; touch $HOME/pwned `touch pwned` $(touch pwned) && exit 3",
    "--config.optim.multipliers={'^params/': 0.1}\n*",
]


def tpu_vm(*words, **env):
    return subprocess.run(
        [shutil.which("bash"), "launch/tpu_vm.sh", *words],
        cwd=ROOT,
        env={**os.environ, **TPU, **env},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["create"], CREATE),
        (["setup"], SETUP),
        (["run", *GIVEN], RUN),
        (["tail", "/mnt/run"], TAIL),
        (
            ["tail", "gs://b/run"],
            [t.replace("/mnt/", "/tmp/jaxface/gs/b/") for t in TAIL],
        ),
        (["resume", *GIVEN], [*RUN, *DESCRIBE, *DELETE, *CREATE, *SETUP]),
        (["delete"], DELETE),
    ],
)
def test_a_dry_run_prints_the_exact_commands(words, wanted):
    done = tpu_vm(*words, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert tpu_vm("--dry-run", *words).stdout == done.stdout
    said = [shlex.split(line) for line in done.stdout.splitlines()]
    assert said == [shlex.split(line) for line in wanted]


def test_what_is_set_changes_the_commands():
    done = tpu_vm("--dry-run", "create", TPU_SPOT="", TPU_PROJECT="a b")
    words = shlex.split(done.stdout)
    assert "--spot" not in words
    assert words[-1] == "--project=a b"
    assert (
        "--version=v2-alpha-tpuv6e"
        in tpu_vm("--dry-run", "create", TPU_TYPE="v6e-8").stdout.split()
    )


def run_there(folder, command):
    """Run a line as a worker would, its Python replaced; return Python's words."""
    python = folder / "jaxface" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def test_hostile_words_arrive_as_they_are(tmp_path):
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    gcloud.chmod(0o755)
    path = f"{gcloud.parent}:{os.environ['PATH']}"
    real = tpu_vm("run", *HOSTILE, PATH=path).stdout.split("\0")[:-1]
    (given,) = [w for w in real if w.startswith("--command=")]
    arrived = run_there(tmp_path, given.removeprefix("--command="))
    assert arrived == ["launch/train.py", "--coordinator=auto", *HOSTILE]
    assert not list(tmp_path.rglob("pwned"))
    # And what a dry run prints is, to a shell, the same words.
    printed = tpu_vm("--dry-run", "run", *HOSTILE, PATH=path).stdout
    again = subprocess.run(
        ["bash", "-c", printed],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert again.stdout.split("\0")[:-1] == real


def test_resume_ends_when_the_run_has_and_gives_up_when_it_never_does(tmp_path):
    gcloud = tmp_path / "gcloud"
    script = '#!/bin/bash\necho "$4" >>{log}\n[ "$4" = describe ] && echo READY\n'
    script += 'if [ "$4" = ssh ]; then exit {code}; fi\n'
    path = f"{tmp_path}:{os.environ['PATH']}"
    for code, tries in ((0, 1), (1, 2)):
        log = tmp_path / f"log{code}"
        gcloud.write_text(script.format(log=log, code=code))
        gcloud.chmod(0o755)
        done = tpu_vm("resume", *GIVEN, PATH=path, TPU_TRIES="2", TPU_WAIT="0")
        assert done.returncode == code
        assert log.read_text().split().count("ssh") == tries
    assert "failed 2 times" in done.stderr


@pytest.mark.parametrize("failing", ["create", "scp"])
def test_resume_waits_for_a_new_slice(tmp_path, failing):
    gcloud, log = tmp_path / "gcloud", tmp_path / "log"
    gcloud.write_text(
        f'#!/bin/bash\necho "$4" >>{log}\n[ "$4" = describe ] && echo PREEMPTED\n'
        f'[ "$4" != {failing} ] && [ "$4" != ssh ]\n'
    )
    gcloud.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    told = {"TPU_TRIES": "3", "TPU_WAIT": "0", "TMPDIR": str(tmp_path)}
    done = tpu_vm("resume", *GIVEN, PATH=path, **told)
    assert (done.returncode, log.read_text().split().count(failing)) == (1, 3)
    assert done.stderr.count("no new slice yet") == 3
    assert "failed 3 times" in done.stderr


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        ([], {}, "wanted create, setup"),
        (["explode"], {}, "'explode' is unknown"),
        (["create"], {"TPU_ZONE": ""}, "TPU_ZONE is not set"),
        (["create"], {"TPU_TYPE": "v9-8"}, "of TPU_TYPE=v9-8 it is not known"),
        (["create"], {"PATH": "/nowhere"}, "gcloud is not installed"),
        (["create", "v5e"], {}, "create takes no more words; got: v5e"),
        (["tail"], {}, "tail wants the workdir"),
        (["run", "--config=a.py"], {}, "run wants flags of launch/train.py"),
    ],
)
def test_what_is_missing_is_named(words, env, said):
    done = tpu_vm(*words, **env)
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "launch" / "slurm.sbatch"]
)
def test_the_shell_reads_it(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert len(path.read_text().splitlines()) <= 120


def test_slurm_goes_back_to_the_queue_for_what_can_be_cured(tmp_path):
    for name, body in (("srun", "exit $CODE"), ("scontrol", "echo requeued")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": tmp_path}
    python = tmp_path / ".venv" / "bin" / "python"
    for code, requeued in ((1, False), (0, False), (75, True), (134, True)):
        done = subprocess.run(
            ["bash", "launch/slurm.sbatch", "--config=a.py"],
            cwd=ROOT,
            env={**os.environ, **env, "CODE": str(code), "SLURM_JOB_ID": "7"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code
        assert ("requeued" in done.stdout) is requeued
        assert ("no .venv in" in done.stderr) is not python.exists()
        python.parent.mkdir(parents=True, exist_ok=True)  # missing the first time
        shutil.copy(sys.executable, python)


def test_the_jobset_has_a_process_for_every_machine_of_its_slice():
    (job,) = yaml.safe_load_all((ROOT / "launch" / "k8s.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (train,) = job["spec"]["replicatedJobs"]
    spec = train["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    slice_ = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    height, width = map(int, slice_.split("x"))
    assert spec["completions"] == spec["parallelism"] == height * width // chips
    assert spec["completionMode"] == "Indexed"
    assert container["resources"]["requests"]["google.com/tpu"] == chips
    (rule,) = spec["podFailurePolicy"]["rules"]  # which wants pods that never restart
    assert (pod["restartPolicy"], rule["action"]) == ("Never", "FailJob")
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [1]
    (then,) = job["spec"]["failurePolicy"]["rules"]
    assert then["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert then["action"] == "FailJobSet"
    mounts = {m["name"] for m in container["volumeMounts"]}
    assert mounts == {v["name"] for v in pod["volumes"]}


def test_launchers_start_train_with_flags_that_it_has():
    known = set(
        re.findall(r'DEFINE\w*\(\s*"(\w+)"', (ROOT / "launch/train.py").read_text())
    )
    for path in ("tpu_vm.sh", "slurm.sbatch", "k8s.yaml"):
        text = pathlib.Path(ROOT, "launch", path).read_text()
        assert "launch/train.py" in text
        used = re.findall(r"--(coordinator|process\w*|workdir|\w+_timeout)\b", text)
        assert used
        assert set(used) <= known
