# Makes instances for `steady pool --exec`: agents on this machine, in the directory that $MAKER names.
import json, os, shutil, signal, subprocess, sys

base = os.environ["MAKER"]
question = json.load(sys.stdin)
of = lambda name: os.path.join(base, name)

def pid(name):
    try:
        number = int(open(os.path.join(of(name), "pid")).read())
        os.kill(number, 0)
        return number
    except (OSError, ValueError):
        return None

if question["action"] == "list":
    print(json.dumps({"instances": [name for name in os.listdir(base) if os.path.isdir(of(name))]}))
elif question["action"] == "grow":
    failed = {}
    for one in question["instances"]:
        if one.get("version") == "broken":
            failed[one["name"]] = "there is no image broken"
            continue
        os.makedirs(of(one["name"]))
        log = open(os.path.join(of(one["name"]), "agent.log"), "w")
        agent = subprocess.Popen([
            os.environ["STEADY"], "agent", "--name", one["name"], "--capacity-provider", question["capacityProvider"],
            "--cluster", question["cluster"], "--server", ",".join(question["servers"]), "--cpu", str(one["cpu"]),
            "--memory", str(one["memory"]), "--runtime", one["runtime"], "--address", "127.0.0.1",
            "--data-dir", os.path.join(of(one["name"]), "data"),
        ], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        open(os.path.join(of(one["name"]), "pid"), "w").write(str(agent.pid))
    print(json.dumps({"failed": failed}))
else:
    for one in question["instances"]:
        number = pid(one["name"])
        if number:
            os.kill(number, signal.SIGTERM)
        shutil.rmtree(of(one["name"]))
    print("{}")
