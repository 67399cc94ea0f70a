"""Calls of tools in the forms of published chat templates: learned, held to, and read back whatever they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.inference.call import Call, Tool
from rhapsode.inference.call_form import CallForm
from rhapsode.inference.call_reader import ToolReader
from rhapsode.inference.chat import ChatTemplate, Turn
from rhapsode.inference.constraint import Constraint
from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.inference.matching import Constraints
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.tools import ToolFormat
from rhapsode.tokenizer.tokenizer import StreamDecoder, Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

HERMES = "llama_cpp/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja"
QWEN = "llama_cpp/Qwen-Qwen2.5-7B-Instruct.jinja"
LLAMA = "llama_cpp/meta-llama-Llama-3.1-8B-Instruct.jinja"
FUNCTIONARY = "llama_cpp/meetkai-functionary-medium-v3.1.jinja"
NEMO = "llama_cpp/mistralai-Mistral-Nemo-Instruct-2407.jinja"
MISTRAL = "mistral/v3.jinja"
COMMAND_R = "llama_cpp/CohereForAI-c4ai-command-r-plus-tool_use.jinja"
DEEPSEEK = "llama_cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja"

# lead, middle, end, between, close, trigger; i stands for a letter or digit of an id, d for a call's number.
ID = ', "id": "iiiiiiiii"'
TAGS = (
    '<tool_call>\n{"name": "',
    '", "arguments": ',
    "}\n</tool_call>",
    '\n<tool_call>\n{"name": "',
    "",
    "<tool_call>",
)
LIST = ('[TOOL_CALLS][{"name": "', '", "arguments": ', ID + "}", ', {"name": "', "]", "[TOOL_CALLS]")
FORMS: dict[str, tuple[str | None, ...]] = {
    HERMES: TAGS,
    QWEN: TAGS,
    LLAMA: ('{"name": "', '", "parameters": ', "}", None, "", '{"name"'),
    "llama_cpp/meta-llama-Llama-3.3-70B-Instruct.jinja": ('{"name": "', '", "parameters": ', "}", None, "", '{"name"'),
    FUNCTIONARY: ("<function=", ">", "</function>", "<function=", "", "<function="),
    NEMO: LIST,
    MISTRAL: LIST,
    "mistral/v2.jinja": (*LIST[:2], "}", *LIST[3:]),
    COMMAND_R: (
        'Action:\n```json\n[\n    {\n        "tool_name": "',
        '",\n        "parameters": ',
        "\n    }",
        ',\n    {\n        "tool_name": "',
        "\n]```",
        "Action:\n```json",
    ),
    DEEPSEEK: (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "\n```json\n",
        "\n```<｜tool▁call▁end｜>",
        "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜>",
    ),
}
OURS = {
    "functools": (
        "{% for m in messages %}{% if m.tool_calls %}A: functools[{% for c in m.tool_calls %}"
        "{{ c.function | tojson }}{{ ', ' if not loop.last }}{% endfor %}]{% else %}{{ m.role[0] | upper }}: "
        "{{ m.content }}{% endif %}</s>{% endfor %}{{ tools | tojson }}{% if add_generation_prompt %}A: {% endif %}"
    ),
    "tag with an id": (
        "{{ tools | tojson }}{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}{% for c in m.tool_calls %}"
        "<call id={{ c.id }} to={{ c.function.name }}>{{ c.function.arguments | tojson(separators=(',', ':')) }}</call>"
        "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    ),
    "numbered": (
        "{{ tools | tojson }}{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}{% if m.tool_calls %}<act>["
        "{% for c in m.tool_calls %}{% set f = c.function %}{{ ', ' if not loop.first }}"
        '{"n": {{ loop.index0 }}, "tool": "{{ f.name }}", "with": {{ f.arguments | tojson }}}'
        "{% endfor %}]</act>{% endif %}</s>{% endfor %}"
    ),
}
CONTROL = re.compile(
    r"<\|[^|<>'\" ]+\|>|<｜[^<>]+?｜>|\[/?(?:INST|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS)\]|</?(?:tool_call|think|s)>"
)
PLAIN = ("<tool_call>", "</tool_call>", "<think>", "</think>")  # in vocabularies, but not special

ANY_OBJECT = {"type": "object", "properties": {"key": {"type": "string", "description": "Any."}}}
WEATHER = Tool(
    "get_weather",
    "Says how the weather is.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 5, "description": "Where."},
            "days": {
                "type": "array",
                "items": {"enum": ["]}", "</tool_call>", 7]},
                "maxItems": 2,
                "description": "When.",
            },
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
)
GET = Tool(
    "get",
    "Gets.",
    {
        "type": "object",
        "properties": {"n": {"type": "integer", "description": "How many."}},
        "required": ["n"],
        "additionalProperties": False,
    },
)
NOTHING = Tool("do-nothing.1", "", {"type": "object", "properties": {}, "additionalProperties": False})
TOOLS = [GET, WEATHER, NOTHING]


@pytest.fixture(scope="module")
def template_of(shared_data: Path, shakespeare: Path) -> Callable[[str], ChatTemplate]:
    """The template of this name, with a small tokenizer that has the control tokens named in it."""
    base = train_tokenizer([shakespeare.read_text(encoding="utf-8")[:20_000]], "bpe", 400)

    @cache
    def make(name: str) -> ChatTemplate:
        source = OURS.get(name) or (shared_data / "chat_templates" / name).read_text(encoding="utf-8")
        definition = json.loads(base.definition)
        known = {token["content"] for token in definition["added_tokens"]}
        for token in sorted({*CONTROL.findall(source), "<s>", "</s>"} - known):
            id = base.vocabulary_size + len(definition["added_tokens"]) - len(known)
            entry = {"id": id, "content": token, "special": token not in PLAIN}
            definition["added_tokens"].append(definition["added_tokens"][0] | entry)
        settings = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
        model = LanguageModel.__new__(LanguageModel)
        model.tokenizer = Tokenizer(json.dumps(definition), settings=settings, chat_template=source)
        model.where, model.end_ids = name, frozenset(model.tokenizer.special_tokens[each] for each in ["</s>"])
        return ChatTemplate(model)

    return make


def format_of(template: ChatTemplate) -> ToolFormat:
    """Also where the template tells the model of no tools."""
    return ToolFormat(CallForm.of(template), template.model.tokenizer.special_tokens, template.model.end_ids)


def joined(segment: Sequence[str] | None) -> str | None:
    return None if segment is None else "".join(segment).replace("\uf8ff", "i").replace("\uf8fe", "d")


@pytest.mark.parametrize("name", FORMS)
def test_the_form_is_learned(template_of: Callable[[str], ChatTemplate], name: str) -> None:
    form = CallForm.of(template_of(name))
    parts = (form.lead, form.middle, form.end, form.between, form.close, form.trigger)
    assert tuple(map(joined, parts)) == FORMS[name]
    assert form.anchored == (form.trigger == tuple('{"name"'))
    assert form.style.indented == (name == COMMAND_R)
    assert set(form.stops) <= set(CONTROL.findall(template_of(name).source)) | {"</s>"} and form.stops


def test_forms_that_nobody_has_published(template_of: Callable[[str], ChatTemplate]) -> None:
    form = CallForm.of(template_of("functools"))
    assert (
        joined(form.lead) == 'functools[{"name": "' and joined(form.trigger) == "functools" and form.stops == ("</s>",)
    )
    form = CallForm.of(template_of("tag with an id"))
    assert (joined(form.lead), joined(form.middle)) == ("<call id=iiiiiiiii to=", ">")
    assert joined(form.trigger) == "<call id=" and form.style.item_separator == ","
    form = CallForm.of(template_of("numbered"))
    assert joined(form.lead) == '<act>[{"n": 0, "tool": "' and joined(form.between) == ', {"n": d, "tool": "'


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama_cpp/google-gemma-2-2b-it.jinja", "writes no tools"),
        ("chujiezheng/chatml.jinja", "writes no tools"),
        ("mistral/v1.jinja", "writes no tools"),
        (DEEPSEEK, "writes no tools"),  # it writes calls, but the model would not be told of any tool
        ("chujiezheng/granite-3.0-instruct.jinja", "writes no tool calls"),
    ],
)
def test_templates_without_tools_are_refused(template_of: Callable[[str], ChatTemplate], name: str, words: str) -> None:
    template = template_of(name)
    with pytest.raises(InputError, match=rf"the chat template of {re.escape(name)} {words}\. Ask without tools"):
        ToolFormat.of(template)
    if words == "writes no tools":
        with pytest.raises(InputError, match=words):
            template.ids([Turn("user", "a")], TOOLS)
    if name != DEEPSEEK:
        with pytest.raises(InputError, match="writes no tool calls"):
            template.ids([Turn("user", "a"), Turn("assistant", calls=(Call("x"),)), Turn("tool", "b")])


@pytest.mark.parametrize(
    "source",
    [
        "NAME{{ f.arguments | tojson }}",
        "<x>{{ f.arguments | tojson | tojson }}NAME",
        "({{ f.arguments | length }}NAME)",
    ],
)
def test_forms_that_cannot_be_read_back_are_refused(template_of: Callable[[str], ChatTemplate], source: str) -> None:
    call = "{% set f = c.function %}" + source.replace("NAME", "{{ f.name }}")
    OURS[source] = (
        "{{ tools | tojson }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls %}"
        + call
        + "{% endfor %}</s>{% endfor %}"
    )
    with pytest.raises(InputError, match="writes no tool calls"):
        ToolFormat.of(template_of(source))


def written(template: ChatTemplate, calls: Sequence[Call], content: str = "") -> str:
    """What the template makes of a turn, and after it."""
    assert template.call_shape is not None
    tools, user = [GET.as_json()], {"role": "user", "content": "qv"}
    plain = template.rendered([user, {"role": "assistant", "content": "qvtext"}], tools, generation=False)
    text = template.rendered([user, template.call_shape.message(calls, content)], tools, generation=False)
    start = plain.rfind("qvtext")
    assert text[:start] == plain[:start]
    return text[start:]


def read(reader: ToolReader, parts: Sequence[str]) -> list[str | Call]:
    """All that is found, with the text between calls in one piece."""
    found: list[str | Call] = []
    for each in [*(found for part in parts for found in reader.push(part)), *reader.flush()]:
        if isinstance(each, str) and found and isinstance(found[-1], str):
            found[-1] += each
        else:
            found.append(each)
    return found


MARKS = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<function=",
    '"}',
    "}]",
    '{"name": "',
    "\\",
    '"',
    "\n",
    "<|im_end|>",
    "</s>",
    "｜tool▁calls▁begin｜",
    "Action:\n```json",
    "é",
    "日",
    "🦙",
    "\u2028",
]
STRINGS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=6),
    st.lists(st.sampled_from(MARKS), max_size=4).map("".join),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), STRINGS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(STRINGS, inner, max_size=3)),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True), st.dictionaries(STRINGS, VALUES, max_size=3)),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("name", [*FORMS, *OURS])
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=CALLS, ascii=st.booleans(), cut=st.integers(1, 9))
def test_calls_that_the_template_writes_are_read_back(
    template_of: Callable[[str], ChatTemplate], name: str, made: list[tuple[str, dict[str, Any]]], ascii: bool, cut: int
) -> None:
    template = template_of(name)
    form = CallForm.of(template)
    made = [each for each in made if each[0] != "python"]  # which functionary writes in a form of its own
    if form.between is None:
        made = made[:1]
    if name == DEEPSEEK:
        made = made[:2]  # it closes the calls after each but the first
    calls = [
        Call(name, json.dumps(arguments, ensure_ascii=ascii), f"abcdefgh{number}")
        for number, (name, arguments) in enumerate(made)
    ]
    if not calls or (name == COMMAND_R and len(json.dumps(made, ensure_ascii=False).splitlines()) > 1):
        return  # its template breaks lines in strings, where there is one of Unicode's rarer line ends
    text = written(template, calls)
    for parts in ([text], list(text), [text[at : at + cut] for at in range(0, len(text), cut)]):
        found = read(ToolReader(form), parts)
        end = found.pop() if isinstance(found[-1], str) else ""
        assert [(each.name, json.loads(each.arguments)) for each in found if isinstance(each, Call)] == made
        assert len(found) == len(made)
        assert isinstance(end, str) and (not end or end.lstrip().startswith(form.stops))


@pytest.mark.parametrize("name", [each for each in FORMS if FORMS[each][5] != '{"name"' and each != DEEPSEEK])
def test_text_before_calls_is_text(template_of: Callable[[str], ChatTemplate], name: str) -> None:
    form = CallForm.of(template_of(name))
    calls = [Call("get", '{"n": 1}', "abcdefgh1"), Call("get", "{}", "abcdefgh2")]
    text = "Let me\n see. \n\n" + written(template_of(name), calls)
    for parts in ([text], list(text)):
        before, *found = read(ToolReader(form), parts)
        assert before == "Let me\n see."
        assert [each.arguments for each in found if isinstance(each, Call)] == (
            ['{"n": 1}', "{}"] if name != COMMAND_R else ['{\n            "n": 1\n        }', "{}"]
        )


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), cut=st.integers(1, 7))
def test_text_without_calls_comes_through_unchanged(
    template_of: Callable[[str], ChatTemplate], name: str, data: st.DataObject, cut: int
) -> None:
    form = CallForm.of(template_of(name))
    lead, trigger = "".join(form.lead), "".join(form.trigger)
    pieces = [trigger[:-1], trigger[1:], lead[:3], lead, lead + "get", lead + "x" * 65, " ", "\n", "a", "{", "}", "日"]
    if form.anchored:
        pieces.append(trigger)
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=6)))
    for parts in ([text], [text[at : at + cut] for at in range(0, len(text), cut)]):
        assert read(ToolReader(form), parts) == ([text] if text else [])


@pytest.mark.parametrize("name", FORMS)
def test_a_call_that_is_cut_off_or_goes_wrong_is_text(template_of: Callable[[str], ChatTemplate], name: str) -> None:
    form = CallForm.of(template_of(name))
    lead, middle = "".join(form.lead), "".join(form.middle)
    for text in (
        lead,
        f"{lead}get",
        f"{lead}get{middle}",
        f'{lead}get{middle}{{"n": "}}',
        f"{lead}{lead}get{middle}{{}} x",
        f"{lead}get{middle}[1] x",
        f"{lead}get{middle}{{1}} x",
    ):
        found = read(ToolReader(form), list(text))
        if text.startswith(lead + lead) and not form.anchored:
            assert found[0] == lead.rstrip() and isinstance(found[1], Call)
        else:
            assert found == [text]


def valid(call: Call) -> bool:
    """Whether a call of one of TOOLS keeps its schema."""
    value = json.loads(call.arguments)
    if call.name == "get":
        return list(value) == ["n"] and isinstance(value["n"], int)
    if call.name == "get_weather":
        days = WEATHER.parameters["properties"]["days"]["items"]["enum"]
        return list(value) == ["city", "days"] and len(value["city"]) <= 5 and all(day in days for day in value["days"])
    return call.name == "do-nothing.1" and value == {}


def sentence(template: ChatTemplate, format: ToolFormat, grammar: str, begun: str, noise: np.random.Generator) -> Any:
    """What is read of a random text that the grammar allows; None where it became too long."""
    tokenizer, ends = template.model.tokenizer, sorted(template.model.end_ids)
    matcher = Constraints(tokenizer, ends).matcher(Constraint("grammar", grammar))
    stops = {*ends, *(tokenizer.special_tokens[name] for name in format.stops)}
    decoder = StreamDecoder(tokenizer, shown=[tokenizer.special_tokens[name] for name in format.shown])
    reader, found = format.reader(), []
    script = tokenizer.encode(begun, special=True)
    for number in range(400):
        allowed = np.flatnonzero(matcher.allowed(tokenizer.vocabulary_size))
        if matcher.complete:
            break
        if number < len(script):
            token = script[number]
            assert token in allowed
        else:
            ending = [token for token in allowed if token in stops]
            token = int(noise.choice(ending if ending and noise.random() < 0.2 else allowed))
        if token in stops:
            break
        matcher.push(token)
        found += reader.push(decoder.push(token))
    else:
        return None
    return [*found, *reader.push(decoder.flush()), *reader.flush()]


@pytest.mark.parametrize("name", [*FORMS, *OURS])
@pytest.mark.parametrize(
    ("choice", "parallel"),
    [("auto", True), ("auto", False), ("required", True), ("required", False), ("get_weather", True)],
)
def test_all_that_the_grammar_allows_are_calls_of_given_tools(
    template_of: Callable[[str], ChatTemplate], name: str, choice: str, parallel: bool
) -> None:
    template = template_of(name)
    format = format_of(template)
    grammar = format.grammar(TOOLS, choice, parallel)
    noise = np.random.default_rng(5)
    trigger = "".join(format.form.trigger)
    # A random text hardly ever holds a trigger.
    begun = ["", trigger, "" if format.form.anchored else f"Well <\n{trigger}"] if choice == "auto" else [""]
    counts = []
    for number in range(12):
        found = sentence(template, format, grammar, begun[number % len(begun)], noise)
        if found is None:
            continue
        calls = [each for each in found if isinstance(each, Call)]
        text = "".join(each for each in found if isinstance(each, str))
        assert all(valid(call) for call in calls)
        assert format.form.anchored or trigger not in text
        assert parallel or len(calls) <= 1
        if begun[number % len(begun)]:
            assert calls and text == begun[number % len(begun)].removesuffix(trigger).rstrip()
        if choice != "auto":
            assert calls and not text
        if choice == "get_weather":
            assert [call.name for call in calls] == ["get_weather"]
        counts.append(len(calls))
    assert len(counts) >= 4
    if choice == "required" and parallel and format.form.between is not None:
        assert max(counts) > 1


@pytest.mark.parametrize("name", [*FORMS, *OURS])
def test_the_grammar_asks_for_the_templates_own_form(template_of: Callable[[str], ChatTemplate], name: str) -> None:
    """What the template writes of calls in the conversation is what the model is held to."""
    template = template_of(name)
    format = format_of(template)
    calls = [
        Call("get", '{"n": 7}', "abcdefgh1"),
        Call("get_weather", '{"city": "Oslo", "days": ["]}", 7]}', "abcdefgh2"),
    ]
    if format.form.between is None:
        calls = calls[1:]
    tokenizer, ends = template.model.tokenizer, sorted(template.model.end_ids)
    text = written(template, calls).lstrip()
    ids = tokenizer.encode(text, special=True)
    stops = {*ends, *(tokenizer.special_tokens[name] for name in format.stops)}
    for choice in ("auto", "required"):
        matcher = Constraints(tokenizer, ends).matcher(Constraint("grammar", format.grammar(TOOLS, choice)))
        for id in ids:
            allowed = matcher.allowed(tokenizer.vocabulary_size)
            assert allowed[id] or (name == COMMAND_R and tokenizer.id_to_token(id) == "Ċ")
            if id in stops or not allowed[id]:
                break
            matcher.push(id)
        assert matcher.allowed(tokenizer.vocabulary_size)[ends[0]]


def conversation(text: Callable[[str], str]) -> tuple[list[Turn], list[Tool]]:
    """One of every kind of turn, without text beside calls, which some templates refuse."""
    arguments = json.dumps({text("key"): [text("value"), {text("inner"): 1.5}]}, ensure_ascii=False)
    turns = [
        Turn("user", text("question")),
        Turn("assistant", "answer"),  # what the model itself wrote may hold tokens that are not special
        Turn("user", text("more")),
        Turn("assistant", calls=(Call(text("a_tool"), arguments, "abcdefgh1"),)),
        Turn("tool", text("result"), call_id="abcdefgh1"),
    ]
    schema = {"type": "object", "properties": {text("key"): {"type": "string", "description": text("meaning")}}}
    return turns, [Tool("a_tool", text("purpose"), schema), GET]


# transformers leaves contents that are null out, and then that of DeepSeek fails there.
@pytest.mark.parametrize("name", [each for each in [*FORMS, *OURS] if each != DEEPSEEK])
def test_ids_equal_transformers(template_of: Callable[[str], ChatTemplate], name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    template = template_of(name)
    template.model.tokenizer.save(tmp_path)
    turns, tools = conversation(
        lambda word: f'{word} Grüße\n日本 "quoted" \\ {{}}' if word in ("value", "result") else word
    )
    call = turns[3].calls[0]
    assert template.call_shape is not None
    arguments: Any = call.value() if template.call_shape.arguments == "object" else call.arguments
    function = {"name": call.name, "arguments": arguments}
    made: dict[str, Any] = {
        "role": "assistant",
        "tool_calls": [{"id": call.id, "type": "function", "function": function}],
    }
    if template.call_shape.content == "null":
        made["content"] = None
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    messages[3] = made
    messages[4] |= {"name": "a_tool", "tool_call_id": call.id}
    theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        messages, tools=[tool.as_json() for tool in tools], add_generation_prompt=True, return_dict=False
    )
    assert template.ids(turns, tools) == theirs


@pytest.mark.parametrize("name", [*FORMS, *OURS])
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nobodys_words_become_control_tokens(
    template_of: Callable[[str], ChatTemplate], name: str, data: st.DataObject
) -> None:
    template = template_of(name)
    tokenizer = template.model.tokenizer
    names = [token["content"] for token in json.loads(tokenizer.definition)["added_tokens"]]
    parts = [*names, *(each[:-1] for each in names), *(each[1:] for each in names), '"', "\\"]

    def hostile(word: str) -> str:
        return f"{word}{''.join(data.draw(st.lists(st.sampled_from(parts), max_size=3)))}."

    def plain(word: str) -> str:
        return word

    added = {tokenizer.token_to_id(each) for each in names}
    ids, harmless = (
        template.ids(turns, () if name == DEEPSEEK else tools) for turns, tools in map(conversation, (hostile, plain))
    )
    assert [id for id in ids if id in added] == [id for id in harmless if id in added]


def test_a_sentencepiece_tokenizer_puts_a_space_after_control_tokens(shared_data: Path) -> None:
    """So it is read, and so it may be written."""
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "mistral" / "mistral_instruct_tokenizer_240323.model.v3")
    tokenizer.chat_template = (shared_data / "chat_templates" / MISTRAL).read_text(encoding="utf-8")
    tokenizer.settings |= {"bos_token": "<s>", "eos_token": "</s>"}
    model = LanguageModel.__new__(LanguageModel)
    model.tokenizer, model.where = tokenizer, MISTRAL
    model.end_ids = frozenset([tokenizer.special_tokens["</s>"]])
    template = ChatTemplate(model)
    format = ToolFormat.of(template)
    call = Call("get_weather", '{"city": "Zoë", "days": [7]}', "abcdefgh1")
    ids = template.ids([Turn("user", "a"), Turn("assistant", calls=(call,)), Turn("tool", "b", call_id=call.id)])
    marker = tokenizer.special_tokens["[TOOL_CALLS]"]
    end = tokenizer.special_tokens["</s>"]
    ids = ids[ids.index(marker) : ids.index(end)]
    matcher = Constraints(tokenizer, [end]).matcher(Constraint("grammar", format.grammar(TOOLS)))
    decoder, reader = StreamDecoder(tokenizer, shown=[marker]), format.reader()
    found = []
    for id in ids:
        assert matcher.allowed(tokenizer.vocabulary_size)[id]
        matcher.push(id)
        found += reader.push(decoder.push(id))
    assert [*found, *reader.flush()] == [Call("get_weather", call.arguments)]
    assert matcher.allowed(tokenizer.vocabulary_size)[end]


def test_a_model_writes_what_it_is_held_to(
    template_of: Callable[[str], ChatTemplate], make_folder: Callable[..., Path]
) -> None:
    tokenizer = template_of(NEMO).model.tokenizer
    model = load(make_folder(tokenizer, objective="chat"), "cpu")
    template = ChatTemplate(model)
    format = ToolFormat.of(template)
    for seed in range(4):
        sampling = Sampling(
            grammar=format.grammar([NOTHING, GET], "required"),
            stop_tokens=format.stops,
            shown_tokens=format.shown,
            temperature=1.0,
            top_p=1.0,
            seed=seed,
            max_new_tokens=60,
        )
        reader = format.reader()
        pieces = list(model.stream_ids(tokenizer.encode("Go"), [sampling]))
        assert pieces[0].text == "[TOOL_CALLS]"
        found = [each for piece in pieces for each in reader.push(piece.text)]
        if pieces[-1].finish_reason != "length":
            assert found and all(isinstance(each, Call) and valid(each) for each in found)
            assert reader.flush() == []


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([], "auto", "tools: there are none"),
        ([GET, GET], "auto", "tool get: is there twice"),
        ([GET, WEATHER], "get_wether", "tool_choice: there is no tool 'get_wether'. .*get_weather"),
        (
            [GET, Tool("x", "", {"not": {}})],
            "auto",
            'tool x: its parameters cannot be held to: .*Unimplemented keys: \\["not"\\]',
        ),
        ([Tool("x", "", {"properties": {"a": {"type": "objekt"}}})], "x", "tool x: its parameters cannot be held to"),
        (
            [Tool("x", "", {"x-guidance": {"lenient": True}, "not": {}})],
            "auto",
            "tool x: its parameters cannot be held",
        ),
        ([Tool("x", "", {"$ref": "http://example.org/x"})], "auto", "tool x: its parameters cannot be held to"),
        ([Tool("x", "", {"description": "a" * 100_000})], "auto", "tools: their schemas are longer than 100,000"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_held_to_is_refused(
    template_of: Callable[[str], ChatTemplate], tools: list[Tool], choice: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        format_of(template_of(QWEN)).grammar(tools, choice)


@pytest.mark.parametrize("name", ["", "a b", "a" * 65, "naïve", 'a"', "a>", "<|im_end|>"])
def test_names_that_no_call_can_hold_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"tools: .* cannot be the name of a tool"):
        Tool(name)


def test_arguments_must_be_an_object(template_of: Callable[[str], ChatTemplate]) -> None:
    with pytest.raises(InputError, match="tool x: the arguments are of type 'array', not object"):
        Tool("x", "", {"type": "array"})
    for arguments, words in (
        ("{", "are not JSON"),
        ('{"a": NaN}', "are not JSON"),
        ("[1]", "is not an object"),
        ("[" * 100_000, "are not JSON"),
    ):
        with pytest.raises(InputError, match=f"arguments of x: .*{words}"):
            template_of(QWEN).ids([Turn("user", "a"), Turn("assistant", calls=(Call("x", arguments),))])


def test_a_turn_whose_calls_would_be_lost_is_refused(template_of: Callable[[str], ChatTemplate]) -> None:
    turns = [Turn("user", "a"), Turn("assistant", "Let me see.", (Call("get", '{"n": 1}', "abcdefgh1"),))]
    with pytest.raises(InputError, match="writes no tool calls in a turn that has text too"):
        template_of(DEEPSEEK).ids(turns)
    with pytest.raises(InputError, match="cannot have both content and tool calls"):
        template_of(MISTRAL).ids(turns)
    text = template_of(QWEN).model.tokenizer.decode(template_of(QWEN).ids(turns), skip_special=False)
    assert 'Let me see.\n<tool_call>\n{"name": "get", "arguments": {"n": 1}}\n</tool_call>' in text
