"""Files and batches with OpenAI's client: what it sends is understood, and what comes back has its types."""

import json
import signal

import openai
import pytest
from conftest import Server, wait_until
from openai import OpenAI

CHATS = "/v1/chat/completions"


def connect(server):
    return OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with Server("--state-dir", str(tmp_path_factory.mktemp("state"))) as server:
        yield connect(server)


def request(name, url=CHATS, **more):
    body = {"model": "stories", "messages": [{"role": "user", "content": f"Once {name}"}], "seed": 1, "max_tokens": 20}
    body = {"model": "stories"} | more if url != CHATS else body | more
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def as_lines(requests):
    return "".join(json.dumps(request) + "\n" for request in requests).encode()


def upload(client, requests):
    return client.files.create(file=("in.jsonl", as_lines(requests)), purpose="batch")


def ended(client, batch):
    wait_until("ended", lambda: client.batches.retrieve(batch.id).completed_at or client.batches.retrieve(batch.id).failed_at)
    return client.batches.retrieve(batch.id)


def lines(client, file_id):
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_a_file_is_stored_listed_read_and_deleted(client, tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_bytes(as_lines([request("a")]))
    expiry = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=path.open("rb"), purpose="batch", expires_after=expiry)
    assert (file.object, file.filename, file.purpose, file.status) == ("file", "requests.jsonl", "batch", "processed")
    assert file.bytes == path.stat().st_size and file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == path.read_bytes()
    others = [client.files.create(file=b"{}", purpose="batch") for _ in range(3)]
    ids = [listed.id for listed in client.files.list(limit=2, order="asc", purpose="batch")]
    assert ids == [file.id] + [other.id for other in others]
    for stored in [file, *others]:
        deleted = client.files.delete(stored.id)
        assert deleted.deleted and deleted.id == stored.id
    with pytest.raises(openai.NotFoundError) as error:
        client.files.retrieve(file.id)
    assert error.value.code == "file_not_found"


def test_a_batch_is_answered_with_a_line_for_each_request(client):
    requests = [request("a"), request("b", max_tokens=3), request("wrong", temperature=-1)]
    file = upload(client, requests)
    batch = client.batches.create(
        input_file_id=file.id, endpoint=CHATS, completion_window="24h", metadata={"of": "me"}
    )
    assert batch.object == "batch" and batch.status == "validating" and batch.metadata == {"of": "me"}
    batch = ended(client, batch)
    assert batch.status == "completed" and batch.in_progress_at and batch.finalizing_at
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    answers = lines(client, batch.output_file_id)
    assert [answer["custom_id"] for answer in answers] == ["a", "b"]
    direct = client.chat.completions.create(**requests[0]["body"])
    answer = openai.types.chat.ChatCompletion.model_validate(answers[0]["response"]["body"])
    assert answer.choices == direct.choices and answers[0]["response"]["status_code"] == 200
    [error] = lines(client, batch.error_file_id)
    assert error["response"]["status_code"] == 400 and error["response"]["body"]["error"]["param"] == "temperature"
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
    used = [answer["response"]["body"]["usage"] for answer in answers]
    assert batch.model == "stories" and batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in used)
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in used)
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens
    assert type(batch.usage).model_validate(batch.usage.model_dump(), strict=True) == batch.usage


def test_completions_and_responses_are_answered_too(client):
    for url, body in [
        ("/v1/completions", {"prompt": "The dog", "max_tokens": 4}),
        ("/v1/responses", {"input": "The dog", "max_output_tokens": 4, "store": False}),
    ]:
        file = upload(client, [request("a", url, **body)])
        batch = ended(client, client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h"))
        assert batch.request_counts.completed == 1, batch


def test_batches_are_listed_page_by_page(client):
    file = upload(client, [request("a", max_tokens=1)])
    made = [client.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h") for _ in range(3)]
    listed = [batch.id for batch in client.batches.list(limit=2)]
    assert listed[:3] == [batch.id for batch in reversed(made)]
    for batch in made:
        assert ended(client, batch).status == "completed"


def test_a_wrong_file_names_its_lines(client):
    file = client.files.create(file=("x.jsonl", as_lines([request("a"), request("a")])), purpose="batch")
    batch = ended(client, client.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h"))
    assert batch.status == "failed"
    [error] = batch.errors.data
    assert (error.code, error.line) == ("duplicate_custom_id", 2)


def test_a_batch_is_cancelled(client):
    file = upload(client, [request(str(n), max_tokens=100) for n in range(300)])
    batch = client.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h")
    assert client.batches.cancel(batch.id).status == "cancelling"
    wait_until("cancelled", lambda: client.batches.retrieve(batch.id).status == "cancelled")
    with pytest.raises(openai.BadRequestError):
        client.batches.cancel(batch.id)


def test_without_a_folder_the_error_names_the_option(url):
    client = OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    for call in [client.files.list, client.batches.list, lambda: client.files.create(file=b"{}", purpose="batch")]:
        with pytest.raises(openai.BadRequestError, match="--state-dir"):
            call()


def test_a_killed_server_loses_and_repeats_no_line_of_2000(tmp_path):
    requests = [request(str(n), max_tokens=8, **({"temperature": -1} if n % 50 == 7 else {})) for n in range(2000)]
    server = Server("--state-dir", str(tmp_path))
    client = connect(server)
    file = upload(client, requests)
    batch = client.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h")
    kills = 0
    for target in (1, 300, 700, 1100, 1600):

        def num_done():
            counts = client.batches.retrieve(batch.id).request_counts
            return counts.completed + counts.failed

        wait_until(f"{target} lines", lambda: num_done() >= target)
        kills += num_done() < 2000
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        server = Server("--state-dir", str(tmp_path))
        client = connect(server)
    with server:
        batch = ended(client, batch)
        assert kills == 5 and batch.status == "completed", batch
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (2000, 1960, 40)
        names = [answer["custom_id"] for answer in lines(client, batch.output_file_id)]
        assert names == [str(n) for n in range(2000) if n % 50 != 7]
        names = [answer["custom_id"] for answer in lines(client, batch.error_file_id)]
        assert names == [str(n) for n in range(2000) if n % 50 == 7]
