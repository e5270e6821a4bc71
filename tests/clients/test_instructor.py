"""instructor: objects of a class in every mode that its OpenAI client has for servers like this one."""

import instructor
import pytest
from conftest import MESSAGES
from openai import OpenAI
from pydantic import BaseModel, Field


class Person(BaseModel):
    """Its schema does not say that there are no further properties."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=99)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_objects_are_read(url, mode):
    client = OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    client = instructor.from_openai(client, mode=instructor.Mode[mode])
    for seed in range(4):
        person = client.chat.completions.create(
            model="stories", messages=MESSAGES, response_model=Person, max_retries=0, max_tokens=120, seed=seed
        )
        assert len(person.name) <= 12 and 0 <= person.age <= 99


def test_lists_of_objects_are_read(url):
    client = instructor.from_openai(OpenAI(base_url=url + "/v1", api_key="none", max_retries=0))
    people = client.chat.completions.create(
        model="stories", messages=MESSAGES, response_model=list[Person], max_retries=0, max_tokens=400, seed=1
    )
    assert all(isinstance(person, Person) for person in people)
