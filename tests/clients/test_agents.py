"""Agents of five frameworks do a task that takes two tools, on a model whose calls are forced by the grammar."""

import asyncio
import os
from typing import Literal

from forced import CALLS, TASK, WEATHER, Forced

os.environ["OPENAI_API_KEY"] = "none"
os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"

PLAN = ["get_capital", "get_weather", None]


def tools():
    """Two functions, and a list of their calls."""
    calls = []

    def get_capital(country: Literal["France"]) -> str:
        """The capital of a country.

        Args:
            country: The name of the country.
        """
        calls.append(("get_capital", country))
        return "Paris"

    def get_weather(city: Literal["Paris"]) -> str:
        """The weather of a city.

        Args:
            city: The name of the city.
        """
        calls.append(("get_weather", city))
        return WEATHER

    return [get_capital, get_weather], calls


def said(messages):
    """The contents of the results of tools."""
    return [message["content"] for message in messages if message["role"] == "tool"]


def test_langchain(url):
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    functions, calls = tools()
    with Forced(url, PLAN) as forced:
        model = ChatOpenAI(base_url=forced.url, api_key="none", model="stories", max_retries=0)
        state = create_agent(model, functions).invoke({"messages": [{"role": "user", "content": TASK}]})
        assert calls == CALLS and state["messages"][-1].content
        assert said(forced.requests[-1]["messages"]) == ["Paris", WEATHER]


def test_langchain_in_a_stream(url):
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    functions, calls = tools()
    with Forced(url, PLAN) as forced:
        model = ChatOpenAI(base_url=forced.url, api_key="none", model="stories", max_retries=0, streaming=True)
        for _ in create_agent(model, functions).stream(
            {"messages": [{"role": "user", "content": TASK}]}, stream_mode="messages"
        ):
            pass
        assert calls == CALLS and all(request["stream"] for request in forced.requests)


def test_langchain_ends_where_a_call_is_cut_off(url):
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    functions, calls = tools()
    model = ChatOpenAI(base_url=url + "/v1", api_key="none", model="stories", max_retries=0, seed=1, max_tokens=20)
    model = model.bind(tool_choice="required")
    agent = create_agent(model.bind_tools(functions, tool_choice="required"), [])
    state = agent.invoke({"messages": [{"role": "user", "content": TASK}]}, {"recursion_limit": 8})
    last = state["messages"][-1]
    assert last.response_metadata["finish_reason"] == "length" and not calls
    assert last.invalid_tool_calls or last.tool_calls or not last.content


def test_autogen(url):
    from autogen_agentchat.agents import AssistantAgent
    from autogen_core.models import ModelFamily
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    functions, calls = tools()
    info = {
        "vision": False,
        "function_calling": True,
        "json_output": True,
        "family": ModelFamily.UNKNOWN,
        "structured_output": True,
    }
    with Forced(url, PLAN) as forced:
        client = OpenAIChatCompletionClient(
            model="stories", base_url=forced.url, api_key="none", model_info=info, max_retries=0
        )
        agent = AssistantAgent("assistant", model_client=client, tools=functions, max_tool_iterations=5)
        result = asyncio.run(agent.run(task=TASK))
        assert calls == CALLS and result.messages[-1].content
        # It names who says something.
        assert any("name" in message for message in forced.requests[0]["messages"])


def test_smolagents(url):
    from smolagents import OpenAIModel, ToolCallingAgent, tool

    functions, calls = tools()
    with Forced(url, ["get_capital", "get_weather", "final_answer"]) as forced:
        model = OpenAIModel(model_id="stories", api_base=forced.url, api_key="none")
        agent = ToolCallingAgent(tools=[tool(function) for function in functions], model=model, verbosity_level=0)
        answer = agent.run(TASK)
        assert calls == CALLS and isinstance(answer, str)
        # It stops at what its own prompts contain, and demands calls.
        assert forced.requests[0]["stop"] and forced.requests[0]["tool_choice"] == "required"


def test_pydantic_ai(url):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    functions, calls = tools()
    with Forced(url, PLAN) as forced:
        model = OpenAIChatModel("stories", provider=OpenAIProvider(base_url=forced.url, api_key="none"))
        result = Agent(model, tools=functions).run_sync(TASK)
        assert calls == CALLS and result.output
        assert said(forced.requests[-1]["messages"]) == ["Paris", WEATHER]


def test_openai_agents(url):
    from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool
    from openai import AsyncOpenAI

    functions, calls = tools()
    with Forced(url, PLAN) as forced:
        client = AsyncOpenAI(base_url=forced.url, api_key="none", max_retries=0)
        model = OpenAIChatCompletionsModel("stories", client)
        agent = Agent("assistant", model=model, tools=[function_tool(function) for function in functions])
        result = Runner.run_sync(agent, TASK)
        assert calls == CALLS and result.final_output
        # Its schemas are strict.
        assert forced.requests[0]["tools"][0]["function"]["strict"]


def test_openai_agents_by_default(url):
    """Its default is the Responses API."""
    from agents import Agent, OpenAIResponsesModel, Runner, function_tool
    from openai import AsyncOpenAI

    functions, calls = tools()
    with Forced(url, PLAN) as forced:
        client = AsyncOpenAI(base_url=forced.url, api_key="none", max_retries=0)
        agent = Agent(
            "assistant",
            model=OpenAIResponsesModel("stories", client),
            tools=[function_tool(function) for function in functions],
        )
        result = Runner.run_sync(agent, TASK)
        assert calls == CALLS and result.final_output
        outputs = [item["output"] for item in forced.requests[-1]["input"] if item.get("type") == "function_call_output"]
        assert outputs == ["Paris", WEATHER]


def test_openai_agents_in_a_stream(url):
    from agents import Agent, OpenAIResponsesModel, Runner
    from openai import AsyncOpenAI

    async def run():
        client = AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
        agent = Agent("assistant", model=OpenAIResponsesModel("stories", client))
        result = Runner.run_streamed(agent, "Once upon a time")
        events = [event.data.type async for event in result.stream_events() if event.type == "raw_response_event"]
        assert "response.output_text.delta" in events and result.final_output

    asyncio.run(run())
