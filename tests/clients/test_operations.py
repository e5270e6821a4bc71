"""docs/operations and what it promises: Envoy in front of two servers; names, probes and units that there are."""

import concurrent.futures
import http.server
import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import urllib.error
import urllib.request
from collections import Counter

import pytest
import yaml
from conftest import BITNET, ROOT, Server, free_port, status, wait_until

OPERATIONS = ROOT / "docs/operations"
ENVOY = str(pathlib.Path(sys.executable).parent / "envoy")


def post(url, timeout=600, **body):
    """Status, headers and body of a chat; status None if the connection broke."""
    body = json.dumps({"messages": [{"role": "user", "content": "Once upon a time"}]} | body).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@pytest.fixture
def envoy(tmp_path):
    """Starts Envoy with our configuration in front of the servers at these ports; gives its address."""
    processes = []

    def start(ports):
        config = yaml.safe_load((OPERATIONS / "envoy.yaml").read_text())
        listener, admin = free_port(), free_port()
        config["admin"]["address"]["socket_address"]["port_value"] = admin
        config["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"] = listener
        endpoints = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
        assert len(endpoints) == len(ports)
        for endpoint, port in zip(endpoints, ports):
            endpoint["endpoint"]["address"]["socket_address"]["port_value"] = port
        path = tmp_path / "envoy.json"
        path.write_text(json.dumps(config))
        command = [ENVOY, "-c", str(path), "--concurrency", "1", "-l", "warning", "--use-dynamic-base-id"]
        processes.append(subprocess.Popen(command))
        url = f"http://127.0.0.1:{listener}"
        wait_until("reachable through Envoy", lambda: status(url + "/readyz") == 200)
        return url

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=30)


def test_envoy_takes_its_configuration():
    result = subprocess.run([ENVOY, "--mode", "validate", "-c", str(OPERATIONS / "envoy.yaml")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def seconds(text):
    return float(str(text).removesuffix("s"))


def test_envoy_waits_longer_than_answers_take_and_closes_idle_connections_first():
    config = yaml.safe_load((OPERATIONS / "envoy.yaml").read_text())["static_resources"]
    settings = tomllib.loads(subprocess.run([BITNET, "serve", "--check-config"], capture_output=True, text=True, check=True).stdout)
    [chain] = config["listeners"][0]["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    assert seconds(manager["stream_idle_timeout"]) > seconds(settings["request-timeout"])
    [options] = config["clusters"][0]["typed_extension_protocol_options"].values()
    assert seconds(options["common_http_protocol_options"]["idle_timeout"]) < seconds(settings["header-timeout"])


class Full(http.server.BaseHTTPRequestHandler):
    """A server that is ready, but full for longer than anybody waits here."""

    protocol_version = "HTTP/1.1"
    num_refused = 0

    def answer(self, status):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(status)
        self.send_header("retry-after", "500")
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self):
        self.answer(200)

    def do_POST(self):
        Full.num_refused += 1
        self.answer(429)

    def log_message(self, *_):
        pass


def test_a_request_that_a_full_server_refuses_is_answered_by_the_other_at_once(envoy):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Full) as full, Server() as idle:
        threading.Thread(target=full.serve_forever, daemon=True).start()
        url = envoy([full.server_port, int(idle.url.rsplit(":", 1)[1])])
        # Until some came to the full one first.
        while Full.num_refused < 3:
            code, _, _ = post(url, timeout=120, max_tokens=2)
            assert code == 200
        full.shutdown()


# Room for four answers each, so that twelve at once are more than both have: some are refused, and sent again.
SMALL = ("--running", "2", "--queue-requests", "2", "--ctx-size", "512")


def test_a_burst_is_served_by_two_servers_in_full(envoy):
    with Server(*SMALL) as a, Server(*SMALL) as b:
        url = envoy([int(server.url.rsplit(":", 1)[1]) for server in (a, b)])
        # So that each knows how long an answer takes, and can say when to come again.
        alone = [json.loads(post(server.url, seed=3, max_tokens=60, ignore_eos=True)[2]) for server in (a, b)]
        with concurrent.futures.ThreadPoolExecutor(12) as clients:
            results = list(clients.map(lambda seed: post(url, seed=seed, max_tokens=60, ignore_eos=True), range(12)))
        assert [result[0] for result in results] == [200] * 12
        # As alone: which server answers makes no difference.
        texts = [answer["choices"][0]["message"]["content"] for answer in [json.loads(results[3][2]), *alone]]
        assert len(set(texts)) == 1, texts
        served = [server.metrics()['vllm:request_success_total{model_name="stories",engine="0",finished_reason="length"}'] for server in (a, b)]
        assert min(served) > 1 and sum(served) == 14, served


def test_a_server_that_drains_is_not_noticed(envoy):
    with Server("--ctx-size", "512") as a, Server("--ctx-size", "512") as b:
        url = envoy([int(server.url.rsplit(":", 1)[1]) for server in (a, b)])
        results, is_over = [], threading.Event()

        def client(index):
            # Half of them take streams.
            while not is_over.is_set():
                code, _, body = post(url, seed=index, max_tokens=40, stream=index % 2 == 0)
                is_whole = b"[DONE]" in body if index % 2 == 0 else b"finish_reason" in body
                results.append((code, is_whole))

        threads = [threading.Thread(target=client, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        try:
            wait_until("busy", lambda: len(results) > 12)
            a.stop()
            at_end = len(results)
            wait_until("gone on", lambda: len(results) > at_end + 12)
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        assert set(results) == {(200, True)}, Counter(results)


def test_the_dashboard_asks_for_what_there_is():
    text = (OPERATIONS / "grafana.json").read_text()
    with Server() as server:
        post(server.url, max_tokens=5)
        known = {name.split("{")[0] for name in server.metrics()}
        labels = set(re.findall(r'(\w+)="', " ".join(server.metrics())))
    queries = []

    def find(value):
        if isinstance(value, dict):
            queries.extend(query for key, query in value.items() if key in ("expr", "query") and isinstance(query, str))
            for inner in value.values():
                find(inner)
        elif isinstance(value, list):
            for inner in value:
                find(inner)

    find(json.loads(text))
    names = {name for query in queries for name in re.findall(r"\b([\w:]+)[{\[]", query)}
    assert len(names) > 10 and names <= known, names - known
    used = {label for query in queries for group in re.findall(r"\bby \(([^)]*)\)", query) for label in group.split(", ")}
    used |= {label for query in queries for label in re.findall(r"(\w+)=~?\\?\"", query)}
    assert used <= labels | {"le"}, used - labels


def test_operations_names_metrics_that_there_are(tmp_path):
    with Server("--state-dir", str(tmp_path)) as server:
        post(server.url, max_tokens=5)
        known = {re.sub(r"_(bucket|sum|count)$", "", name.split("{")[0]) for name in server.metrics()}
    text = (ROOT / "docs/operations.md").read_text()
    names = set()
    for name in re.findall(r"`((?:vllm:|bitnet_|http_server_)[\w{},]*)", text):
        # `a_{b,c}_d` stands for several; other braces hold labels.
        inner = re.search(r"\{([^}]*)\}", name)
        is_several = inner and "," in inner[1]
        names |= {name.replace(inner[0], word) for word in inner[1].split(",")} if is_several else {name.split("{")[0]}
    assert len(names) > 15 and names <= known, names - known


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_systemd_takes_the_unit(tmp_path):
    # Where the program is.
    unit = (OPERATIONS / "bitnet.service").read_text().replace("/usr/local/bin/bitnet", "/bin/true")
    path = tmp_path / "bitnet.service"
    path.write_text(unit)
    result = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    ours = [line for line in result.stderr.splitlines() if "bitnet" in line]
    assert result.returncode == 0 and not ours, result.stderr


def test_kubernetes_probes_are_answered():
    probes = {}
    for document in yaml.safe_load_all((OPERATIONS / "kubernetes.yaml").read_text()):
        if document["kind"] == "Deployment":
            [container] = document["spec"]["template"]["spec"]["containers"]
            probes = {name: probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")}
            pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            grace = document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert sorted(probes) == ["livenessProbe", "readinessProbe", "startupProbe"]
    # The default of --drain-timeout.
    assert grace >= pause + 120
    with Server() as server:
        assert {status(server.url + path) for path in probes.values()} == {200}


def test_metrics_are_read_in_both_formats():
    """prometheus-client's parsers take the text, and both formats have the same samples."""
    from prometheus_client import parser
    from prometheus_client.openmetrics import parser as open_parser

    with Server() as server:
        assert post(server.url)[0] == 200

        def samples(accept, read):
            request = urllib.request.Request(server.url + "/metrics", headers={"accept": accept})
            with urllib.request.urlopen(request) as response:
                assert response.headers["content-type"].startswith(accept.split(";")[0])
                families = list(read(response.read().decode()))
            return {sample.name for family in families for sample in family.samples}

        plain = samples("text/plain", parser.text_string_to_metric_families)
        assert samples("application/openmetrics-text;version=1.0.0", open_parser.text_string_to_metric_families) == plain
