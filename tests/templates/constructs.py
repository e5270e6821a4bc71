"""Small templates of our own, one for each thing that chat templates do with Jinja.

Every template sees MESSAGES and VARIABLES of this file. `all_of_them` also makes the long series:
slices over all signs, formats over all values.
"""

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi\n"},
    {"role": "assistant", "content": "Hello\tyou"},
    {"role": "user", "content": "Bye"},
]

VARIABLES = {
    "name": "wörld",
    "text": "The quick-brown fox\njumps over\r\n  the lazy dog's back",
    "empty": "",
    "numbers": [3, 1, 2, 10, -5],
    "mixed": [1, 2.5, "three", None, True, [4], {"five": 5}],
    "nested": {"b": {"z": 1, "a": [1, 2]}, "a": "x", "c": None},
    "people": [
        {"name": "Ann", "age": 31, "city": "Bonn"},
        {"name": "bob", "age": 25, "city": "Aachen"},
        {"name": "Cid", "age": 31, "city": "bonn"},
    ],
    "schema": {"type": "object", "properties": {"zone": {"type": "string"}, "city": {"type": ["string", "null"]}}},
    "big": 12345678901234567890,
    "pi": 3.14159265,
    "yes": True,
    "html": "<a href='x'>T & \"q\"</a>",
    "unicode": "Ünï çödé \u4f60\u597d \U0001f600 \x7f\x01",
}

BASIC = r"""
{{ name }}|{{ missing }}|{{ missing.__class__ is defined }}
{{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }}
{{ 1 / 3 }} {{ 10 / 2 }} {{ 1e20 }} {{ 1e16 }} {{ 1e15 }} {{ 1.0 }} {{ 0.0001 }} {{ 0.00001 }} {{ 1.5e-7 }} {{ 123456789.123 }} {{ -0.0 }}
{{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 1_000 }} {{ 1_0.5 }}
{{ "a" ~ 1 ~ none ~ true ~ 1.0 ~ [1, "x"] }}
{{ "a" + "b" }} {{ [1] + [2] }} {{ (1,) + (2,) }} {{ "ab" * 3 }} {{ 2 * [1, 2] }} {{ "x" * 0 }} {{ "x" * -1 }}
{{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ "a" < "b" }} {{ [1, 2] < [1, 3] }} {{ 1 == 1.0 }} {{ "1" == 1 }} {{ true == 1 }} {{ none == false }}
{{ 1 in [1, 2] }} {{ "a" in "abc" }} {{ "a" not in {"a": 1} }} {{ 1 in (2, 3) }} {{ missing in [1] }}
{{ not true }} {{ not "" }} {{ true and "x" }} {{ "" or "y" }} {{ none and 1 }} {{ 0 or none }}
{{ "yes" if yes else "no" }} {{ "a" if false }} {{ 1 if 0 else 2 if 0 else 3 }}
{{ -5 | abs }} {{ (-5) | abs }} {{ - 2 ** 2 }} {{ +3 }} {{ not 1 == 2 }}
{{ [1, 2, 3] }} {{ (1, 2) }} {{ (1,) }} {{ () }} {{ {} }} {{ {"a": 1, "b": [none, true]} }} {{ [] }}
{{ mixed }} {{ nested }} {{ unicode }} {{ [unicode] }} {{ ["it's", 'say "x"', "both ' and \""] }}
{{ numbers[0] }} {{ numbers[-1] }} {{ numbers[99] }} {{ nested.b.z }} {{ nested["b"]["a"][1] }} {{ name[0] }} {{ name[-1] }} {{ nested.zz.y is defined if false else "skip" }}
{{ numbers.0 }} {{ people.1.name }} {{ nested.b.a.1 }}
{{ "a\nb\tc\\d\'e\"f\x41\u00e9\101" }} {{ 'a' "b" 'c' }} {{ "\q" }}
{{ range(5) | list }} {{ range(2, 10, 3) | list }} {{ range(5, 0, -2) | list }} {{ range(3) }} {{ range(0, 10, 2) }} {{ range(3)[1] }} {{ range(10)[2:8:3] | list }}
{{ dict(a=1, b=2) }} {{ dict([("x", 1), ("a", 2)]) }} {{ dict({"z": 1}, y=2) }} {{ dict() }} {{ dict.fromkeys(["a", "b"], 1) }}
{{ {"b": 1, "a": 2}.items() | list }} {{ {"b": 1, "a": 2}.keys() | list }} {{ {"b": 1}.values() | list }} {{ {"b": 1}.items() }} {{ {"b": 1}.keys() }} {{ {"b": 1}.values() }}
{{ nested.get("a") }} {{ nested.get("zz") }} {{ nested.get("zz", 5) }} {{ nested.items is callable }} {{ nested["items"] is callable }} {{ nested.copy() == nested }}
{{ [1, 2, 1].index(2) }} {{ [1, 2, 1].count(1) }} {{ (1, 2).index(2) }} {{ [1, 2, 1].index(1, 1) }}
{% set ns = namespace(a=1, b="x") %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns.b }}{{ ns.zz is defined }}
{% set ns = namespace({"k": 1}) %}{% for i in range(3) %}{% set ns.k = ns.k * 2 %}{% endfor %}{{ ns.k }}
{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% set a, b = 1, [2] %}{{ a }}{{ b }}{% set (c, d) = (3, 4) %}{{ c }}{{ d }}
{% set x %}a {{ name }} b{% endset %}[{{ x }}]{{ x | length }}
{% set x | upper | trim %}  a {{ name }} {% endset %}[{{ x }}]
{% set x %}{% set y = 1 %}{{ y }}{% endset %}{{ x }}{{ y }}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}
{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}
{% filter upper %}a {{ name }}{% endfilter %}{% filter replace("a", "b") | trim %} aa {% endfilter %}|
{% for x in numbers %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }} {% endfor %}
{% for x in numbers %}({{ loop.previtem }},{{ x }},{{ loop.nextitem }}){% endfor %}
{% for m in messages %}({{ loop.previtem.role if loop.previtem else "-" }}>{{ loop.nextitem.role if not loop.last else "-" }}){% endfor %}
{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }} {{ loop.cycle("a", "b") }} {% endfor %}
{% for x in [] %}{{ x }}{% else %}none{% endfor %}{% for x in [1] %}{{ x }}{% else %}none{% endfor %}
{% for x in [1, 2] %}{% continue %}{% else %}else{% endfor %}|{% for x in [1, 2] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% else %}else{% endfor %}
{% for x in numbers if x > 1 %}{{ loop.index }}:{{ x }} {% endfor %}{% for x in numbers if x > 100 %}{{ x }}{% else %}none{% endfor %}
{% for k, v in nested.items() %}{{ k }}={{ v }};{% endfor %}{% for k in nested %}{{ k }}{% endfor %}{% for c in "héy" %}{{ c }}.{% endfor %}
{% for (a, b) in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for x in [[1, [2, 3]], [4]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}
{% for i in range(3) %}{% for j in range(3) %}{% if j == 1 %}{% continue %}{% endif %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{% endfor %}
{% macro m(a, b=2, c="x") %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c="y") }}{{ m(b=5, a=1) }}{{ m() }}
{% macro m(a) %}{{ a }}:{{ varargs }}:{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}{{ m(1) }}{{ m.name }}{{ m.arguments }}{{ m.catch_kwargs }}{{ m.catch_varargs }}{{ m.caller }}
{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}
{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}{% set x = 2 %}{{ m() }}
{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}
{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}in {{ name }}{% endcall %}
{% macro m(l) %}{% for x in l %}{{ caller(x, loop.index) }}{% endfor %}{% endmacro %}{% call(x, i) m([1, 2]) %}{{ x }}-{{ i }};{% endcall %}
{% for i in [1, 2] %}{% macro m(a) %}{{ a }}{{ i }}{% endmacro %}{{ m("x") }}{% endfor %}
{% macro a() %}A{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}
{% set args = [1, 2] %}{% set kw = {"c": 3} %}{% macro m(a, b, c) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(*args, **kw) }}
{% generation %}abc {% set g = 1 %}{% endgeneration %}{{ g }}
{% block x %}in block{% endblock %}{% block y scoped %}{{ name }}{% endblock y %}
{% raw %}{{ not }} {% this %}{% endraw %}{# a comment #}{%- raw -%}  x  {%- endraw -%}
{% if missing %}a{% elif 1 %}b{% else %}c{% endif %}{% if not missing and missing is not defined %}d{% endif %}
{% print "a", "b" %}{{ 1, 2 }}{{ "a", }}
{{ joiner(", ") is callable }}{% set j = joiner() %}{% for x in [1, 2, 3] %}{{ j() }}{{ x }}{% endfor %}
{% set c = cycler("a", "b", "c") %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.reset() }}{{ c.current }}
{{ "%s is %d years and %.2f%%" % ("Bob", 42, 3.14159) }} {{ "%r %5s|%-5s|%05d|%+d|%x|%X|%o|%e|%g|%c" % ("a", "b", "c", 42, 7, 255, 255, 8, 12345.678, 0.0001, "z") }}
{{ "%(a)s-%(b)03d" % {"a": "x", "b": 7} }} {{ "%s" % name }} {{ "%s" % [1, 2] }} {{ "%5.1f|%-8.3e|%G" % (3.14159, 31415.9, 1e-10) }} {{ "%*d" % (5, 42) }} {{ "%.3s|" % "abcdef" }} {{ "%i" % 3.9 }} {{ "%#x %#o" % (255, 8) }}
{{ "{} {} {}".format(1, "a", none) }} {{ "{0}{1}{0}".format("x", "y") }} {{ "{a}-{b.name}-{c[0]}-{c[k]}".format(a=1, b={"name": "n"}, c={"k": 2, 0: 3}) }} {{ "{{}}".format() }}
{{ "{:>5}|{:<5}|{:^5}|{:*^7}|{:05d}|{:+d}|{:,}|{:.2f}|{:e}|{:%}|{:x}|{:#x}|{:b}|{!r}|{:_}".format("a", "b", "c", "d", 42, 7, 1234567, 3.14159, 12345.678, 0.25, 255, 255, 5, "q", 1234567) }}
{{ "{:{}}|{:.3}|{:>{w}}".format("a", 4, 3.14159, "x", w=3) }} {{ "{:.3}|{:10.4f}|{:g}|{:g}|{:.3g}".format("abcdef", pi, 1000000.0, 1e-5, 1234.5) }} {{ "{}".format(1.0) }} {{ "{:5}|{:5}|{:<5}|".format(1, "a", 2) }} {{ "{a}".format_map({"a": 1}) }}
{{ loop is defined }} {{ self is defined }} {{ varargs is defined }} {{ caller is defined }}
{{ text.split() }} {{ text.split("\n") }} {{ "a,b,,c".split(",") }} {{ "a,b,c".split(",", 1) }} {{ "a,b,c".rsplit(",", 1) }} {{ " a  b c ".split(none, 1) }} {{ " a  b c ".rsplit(none, 1) }} {{ "".split() }} {{ "".split(",") }} {{ "a b".split(maxsplit=0) }} {{ " a b ".split(maxsplit=1) }} {{ " a b ".rsplit(maxsplit=0) }}
{{ text.splitlines() }} {{ text.splitlines(true) }} {{ "a\n\nb\n".splitlines() }} {{ "".splitlines() }}
{{ "  x ".strip() }}|{{ "  x ".lstrip() }}|{{ "  x ".rstrip() }}|{{ "xxaxx".strip("x") }}|{{ "abcba".strip("ab") }}|{{ "xya".lstrip("yx") }}|{{ "axy".rstrip("xy") }}|{{ "\x1f a\x1c".strip() }}|
{{ "a-b-c".partition("-") }} {{ "a-b-c".rpartition("-") }} {{ "abc".partition("x") }} {{ "abc".rpartition("x") }}
{{ "prefix-x".removeprefix("prefix-") }} {{ "x.txt".removesuffix(".txt") }} {{ "abc".removeprefix("x") }} {{ "abc".removesuffix("") }}
{{ "abc".startswith("ab") }} {{ "abc".endswith(("x", "c")) }} {{ "abc".startswith("b", 1) }} {{ "abc".endswith("b", 0, 2) }} {{ "abc".startswith("") }} {{ "abc".startswith(("a",)) }}
{{ "abcabc".replace("b", "X") }} {{ "abcabc".replace("b", "X", 1) }} {{ "abc".replace("", "-") }} {{ "abc".replace("", "-", 2) }} {{ "aaa".replace("aa", "b") }}
{{ "abcabc".find("b") }} {{ "abc".find("x") }} {{ "abcabc".rfind("b") }} {{ "abcabc".index("c") }} {{ "abcabc".rindex("c") }} {{ "abcabc".count("b") }} {{ "abcabc".find("b", 2) }} {{ "abcabc".count("b", 2, 4) }} {{ "häb".find("b") }} {{ "abc".find("b", -2) }} {{ "abc".count("") }}
{{ ", ".join(["a", "b"]) }} {{ "".join("abc") }} {{ "-".join({"a": 1, "b": 2}) }}
{{ "ab".center(7, "*") }}|{{ "abc".center(8) }}|{{ "abc".center(6) }}|{{ "ab".center(5) }}|{{ "ab".ljust(5) }}|{{ "ab".rjust(5, ".") }}|{{ "-42".zfill(6) }}|{{ "42".zfill(1) }}|{{ "a\tb".expandtabs(4) }}|{{ "a\tbc\t".expandtabs() }}|
{{ "hELLO wORLD".capitalize() }} {{ "hello world's they're".title() }} {{ "aBc".swapcase() }} {{ "Straße".casefold() }} {{ "ß".upper() }} {{ "ÀÉ".lower() }} {{ "ǆ".capitalize() }} {{ "ΑΣ".lower() }}
{{ "abc".isalpha() }}{{ "ab1".isalpha() }}{{ "".isalpha() }}{{ "12".isdigit() }}{{ "1²".isdigit() }}{{ "1²".isdecimal() }}{{ "½".isnumeric() }}{{ "a1".isalnum() }}{{ " \t".isspace() }}{{ "Ab C".istitle() }}{{ "AB C".istitle() }}{{ "ab".islower() }}{{ "a1".islower() }}{{ "1".islower() }}{{ "AB".isupper() }}{{ "a_1".isidentifier() }}{{ "1a".isidentifier() }}{{ "aé".isascii() }}{{ "a\n".isprintable() }}
{{ name | upper }} {{ "ABC" | lower }} {{ "hello wORLD" | capitalize }} {{ "hello-world (foo) it's" | title }} {{ "  x " | trim }}| {{ "xxaxx" | trim("x") }} {{ 5 | string ~ "x" }} {{ none | upper }} {{ 12 | lower }} {{ missing | upper }}|
{{ missing | default("d") }} {{ "" | default("d") }}| {{ "" | default("d", true) }} {{ none | d("x") }} {{ none | d("x", boolean=true) }} {{ missing.x | default("y") if false }} {{ missing | default }}|
{{ numbers | length }} {{ name | count }} {{ nested | length }} {{ missing | length }} {{ range(4) | length }} {{ nested.items() | length }}
{{ numbers | first }} {{ numbers | last }} {{ [] | first }} {{ "abc" | first }} {{ "abc" | last }} {{ nested | first }} {{ [] | last is defined }} {{ nested.items() | first }} {{ numbers | map("string") | first }}
{{ numbers | sort }} {{ numbers | sort(reverse=true) }} {{ ["b", "A", "c"] | sort }} {{ ["b", "A", "c"] | sort(case_sensitive=true) }} {{ people | sort(attribute="age") | map(attribute="name") | list }} {{ people | sort(attribute="age,name") | map(attribute="name") | join(",") }} {{ people | sort(attribute="city", reverse=true) | map(attribute="name") | join }}
{{ nested | dictsort }} {{ {"B": 2, "a": 1} | dictsort }} {{ {"B": 2, "a": 1} | dictsort(true) }} {{ {"x": 2, "y": 1} | dictsort(by="value") }} {{ {"x": 2, "y": 1} | dictsort(false, "value", true) }}
{{ people | groupby("age") | length }} {% for g in people | groupby("age") %}{{ g.grouper }}:{{ g.list | map(attribute="name") | join(",") }};{% endfor %}{% for c, l in people | groupby("city") %}{{ c }}{{ l | length }}{% endfor %}{{ [{"a": 1}, {}] | groupby("a", default=0) }}
{{ [1, 2, 1, "a", "A"] | unique | list }} {{ ["a", "A"] | unique(case_sensitive=true) | list }} {{ people | unique(attribute="age") | map(attribute="name") | list }}
{{ numbers | min }} {{ numbers | max }} {{ ["b", "A"] | min }} {{ people | max(attribute="age") }} {{ [] | min }}| {{ numbers | sum }} {{ people | sum(attribute="age") }} {{ [[1], [2]] | sum(start=[]) }} {{ [0.1, 0.2] | sum }}
{{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | batch(2, "x") | list }} {{ range(7) | slice(3) | list }} {{ range(7) | slice(3, "x") | list }}
{{ people | map(attribute="name") | list }} {{ people | map(attribute="zz", default="?") | list }} {{ ["a", "b"] | map("upper") | join }} {{ [1, 2] | map("string") | list }} {{ ["a"] | map("replace", "a", "b") | list }} {{ [[1, 2], [3]] | map("length") | list }} {{ people | map(attribute="name.0") | join }} {{ [[1, 2]] | map(attribute=1) | list }}
{{ numbers | select("odd") | list }} {{ numbers | select | list }} {{ numbers | reject("gt", 2) | list }} {{ [0, 1, ""] | reject | list }} {{ people | selectattr("age", "equalto", 31) | map(attribute="name") | list }} {{ people | rejectattr("age", "gt", 30) | map(attribute="name") | list }} {{ people | selectattr("name") | list | length }} {{ messages | selectattr("role", "in", ["user", "system"]) | list | length }} {{ messages | selectattr("role", "==", "user") | map(attribute="content") | list }}
{% set g = numbers | select("odd") %}{{ g | list }}{{ g | list }}{% if numbers | select("gt", 100) %}true{% endif %}{% set h = numbers | map("string") %}{{ "3" in h }}{{ h | list }}
{{ "abc" | reverse }} {{ [1, 2, 3] | reverse | list }} {{ range(3) | reverse | list }} {{ nested | reverse | list }} {{ "héy"[::-1] }}
{{ [1, "a", none] | join(", ") }} {{ people | join(",", attribute="name") }} {{ "abc" | join("-") }} {{ [] | join }}|{{ {"a": 1, "b": 2} | join("+") }}
{{ "3.7" | int }} {{ "x" | int }} {{ "x" | int(7) }} {{ "0x1f" | int(base=16) }} {{ "101" | int(0, 2) }} {{ 3.9 | int }} {{ -3.9 | int }} {{ true | int }} {{ " 42 " | int }} {{ none | int }} {{ "1_000" | int }} {{ "1e3" | int }} {{ "" | int }} {{ [] | int(5) }}
{{ "3.7" | float }} {{ "x" | float }} {{ "x" | float(1.5) }} {{ 3 | float }} {{ "1e3" | float }} {{ "inf" | float }} {{ "nan" | float }} {{ none | float }} {{ true | float }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 42.55 | round(1, "floor") }} {{ 42.51 | round(1, "ceil") }} {{ 5 | round }} {{ 1234 | round(-2) }} {{ 1250 | round(-2) }} {{ -2.5 | round }} {{ 1e10 | round(2) }} {{ 2.5 | round | int }}
{{ "foo bar baz" | truncate(9) }} {{ "foo bar baz qux" | truncate(9) }} {{ "foo bar baz qux" | truncate(9, true) }} {{ "foo bar baz qux" | truncate(9, false, "…", 0) }} {{ "foobarbazqux" | truncate(5, leeway=0) }} {{ "foo bar baz qux" | truncate(11, leeway=0) }} {{ "foo bar baz qux" | truncate(length=8, killwords=true, end="") }}
{{ "a\nb\n\nc" | indent }} | {{ "a\nb" | indent(2, true) }} | {{ "a\n\nb" | indent(2, blank=true) }} | {{ "a\nb" | indent("> ") }} | {{ "a\nb\n" | indent(1) }}| {{ "" | indent }}| {{ "a\r\nb" | indent(2) }}
{{ "the quick brown fox jumps" | wordwrap(10) }} | {{ "abcdefghijklmnop qr" | wordwrap(5) }} | {{ "abcdefghij kl" | wordwrap(5, false) }} | {{ "a b\nc d e f g" | wordwrap(3, wrapstring="/") }} | {{ "well-known fact" | wordwrap(6) }} | {{ "well-known fact" | wordwrap(6, break_on_hyphens=false) }} | {{ "  lead and   gaps  here" | wordwrap(8) }} | {{ "abc defghijk" | wordwrap(6) }}
{{ text | wordcount }} {{ "don't stop" | wordcount }} {{ "a_b c-d" | wordcount }} {{ "ab" | center(10) }}| {{ "ab" | center }}|
{{ html | escape }} {{ html | e }} {{ "<p>a &amp; b</p> <!-- x -->  c" | striptags }} {{ html | safe }} {{ html | forceescape }} {{ "a b&c/d?é" | urlencode }} {{ {"a": "b c", "d": "é/"} | urlencode }} {{ [("x", 1)] | urlencode }} {{ {"class": "x", "id": none, "t": "<>"} | xmlattr }} {{ {"a": 1} | xmlattr(false) }}
{{ "%s-%s" | format("a", "b") }} {{ "%(x)s" | format(x=1) }} {{ 1000 | filesizeformat }} {{ 1 | filesizeformat }} {{ 123456789 | filesizeformat }} {{ 1536 | filesizeformat(true) }} {{ 999 | filesizeformat }} {{ 1e30 | filesizeformat }}
{{ nested | items | list }} {{ missing | items | list }} {{ nested | attr("items") is callable }} {{ nested | attr("a") is defined }} {{ nested | list }} {{ "abc" | list }} {{ missing | list }}
{{ nested | tojson }} {{ schema | tojson }} {{ unicode | tojson }} {{ unicode | tojson(ensure_ascii=true) }} {{ mixed | tojson }} {{ html | tojson }} {{ big | tojson }} {{ pi | tojson }} {{ "a\x08\x0c\x7f/" | tojson }}
{{ nested | tojson(indent=2) }} {{ nested | tojson(indent=0) }} {{ [] | tojson(indent=2) }} {{ {} | tojson(indent=2) }} {{ [1, {"a": []}] | tojson(indent=4) }} {{ nested | tojson(indent="--") }} {{ nested | tojson(indent=-1) }}
{{ nested | tojson(separators=(",", ":")) }} {{ nested | tojson(sort_keys=true) }} {{ nested | tojson(true) }} {{ unicode | tojson(true, 2) }} {{ nested | tojson(separators=(",", ": "), indent=1) }} {{ {1: "a", 2.5: "b", true: "c", none: "d"} | tojson }} {{ (1, 2) | tojson }} {{ 1.0 | tojson }} {{ 1e100 | tojson }} {{ "inf" | float | tojson }}
{{ 1 is number }}{{ 1.0 is number }}{{ true is number }}{{ "1" is number }}{{ 1 is integer }}{{ true is integer }}{{ 1.0 is float }}{{ true is boolean }}{{ 1 is boolean }}{{ "a" is string }}{{ none is none }}{{ missing is none }}{{ [] is iterable }}{{ none is iterable }}{{ 1 is iterable }}{{ missing is iterable }}{{ "a" is iterable }}{{ {} is mapping }}{{ [] is mapping }}
{{ "a" is sequence }}{{ {} is sequence }}{{ [] is sequence }}{{ (1,) is sequence }}{{ 1 is sequence }}{{ none is sequence }}{{ missing is sequence }}{{ {}.items() is sequence }}{{ range(2) is sequence }}
{{ 1 is odd }}{{ 2 is even }}{{ 6 is divisibleby 3 }}{{ 6 is divisibleby(4) }}{{ 1 is eq 1 }}{{ 1 is ne 1 }}{{ 1 is lt 2 }}{{ 2 is le 2 }}{{ 3 is gt 2 }}{{ 3 is ge 4 }}{{ 1 is equalto 1 }}{{ 1 is sameas 1 }}{{ none is sameas none }}{{ true is true }}{{ 1 is true }}{{ false is false }}{{ 1 is in [1, 2] }}{{ "a" is lower }}{{ "A" is upper }}{{ "upper" is filter }}{{ "zz" is filter }}{{ "odd" is test }}{{ "a" is escaped }}{{ 1 is greaterthan 0 }}{{ 1 is lessthan 0 }}
{{ range is callable }}{{ 1 is callable }}{{ "a".upper is callable }}{{ missing is callable }}{{ dict is callable }}{% macro m() %}{% endmacro %}{{ m is callable }}{{ namespace() is callable }}
{{ missing is defined }}{{ missing is undefined }}{{ name is defined }}{{ nested.zz is defined }}{{ nested.a is defined and nested.a }}{{ x is defined if x else "n" }}
{{ tools is iterable and tools | length > 0 if tools else "no tools" }} {{ tools is none }} {{ documents is none }} {{ tools is defined }} {{ not tools }}
{{ messages[0].role }} {{ messages[0]["content"] }} {{ messages[1:] | length }} {{ messages[-1].content }} {{ messages | map(attribute="role") | join(",") }} {{ (messages | last).role }} {{ messages[0].keys() | list }} {{ messages[99] is defined }} {{ messages[1:][0].content.strip() }}
{{ messages[0] }} {{ messages | length }} {{ messages[0] | tojson }} {{ "content" in messages[0] }} {{ "tool_calls" in messages[0] }} {{ messages[0].get("x") is none }} {{ messages[0].x is defined }}
{{- "a" -}}  b  {{- "c" }}
   {%- if true -%}   x   {%- endif -%}   y
  {% if true %}
  indented
  {% endif %}
after
  {%+ if true %}kept{% endif +%}
next
{% if true +%}
a
{%- endif %}
    {# comment #}
x {# c #} y
{#- a -#}  z
{{ "x" }}
{{ "y" }}

{{ big }} {{ big + 1 }} {{ 10 ** 20 }} {{ 2 ** 64 }} {{ -big }}
{{ 1 if true else missing.x }} {{ [1,2,3][1:] [0] }} {{ {"a": {"b": 1}}["a"].b }} {{ ("a", "b")[1] }} {{ "abc"[1] }} {{ "abc"[5] is defined }} {{ [1][1:] }} {{ numbers[:2] + numbers[2:] == numbers }}
{{ (name | upper).lower() }} {{ name.upper() | lower }} {{ [name] | first | length }} {{ ("a" ~ "b") | upper ~ "c" }} {{ "a" ~ "b" | upper }} {{ not name is string }} {{ 1 + 1 | string | length if false else "z" }}
{{ "a" "b" ~ "c" }} {{ true }} {{ True }} {{ none }} {{ None }} {{ false }} {{ False }}
{{ [missing] }} {{ missing == missing }} {{ missing == none }} {{ missing ~ "x" }} {{ [missing] | length }}
{{ strftime_now("%Y-%m-%d") | length }} {{ strftime_now("%d %b %Y %H:%M") }} {{ strftime_now("%B %-d, %Y (%A) %j %p") }}
{% for i in range(3) -%}
  {{ i }}
{%- endfor %}
{%- for i in range(3) %}
{{ i }}
{% endfor -%}
end
{% set x = [] %}{% set x = x + [1] %}{{ x }}{% set d = dict(x=1) %}{% set d = dict(d, **{"y": 2}) %}{{ d }}
{% set ns = namespace(found=false) %}{% for m in messages %}{% if m.role == "assistant" and not ns.found %}{% set ns.found = true %}{% set ns.index = loop.index0 %}{% endif %}{% endfor %}{{ ns.found }}{{ ns.index }}
{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %}{% for m in messages | reverse %}{{ m.role[0] }}{% endfor %}
{% for i in [1,2,3] %}{% for j in [1,2] %}{{ loop.index }}{{ loop.length }}{% endfor %}{{ loop.index }}{% endfor %}
{% set outer = namespace(v=[]) %}{% for i in range(3) %}{% set outer.v = outer.v + [i] %}{% endfor %}{{ outer.v }}
{{ {"a": 1}.a }}{{ {"a": 1}["a"] }}{{ {"items": 1}["items"] }}{{ {1: 2}[1] }}{{ {"a": 1} == {"a": 1.0} }}{{ {"a": 1, "b": 2} == {"b": 2, "a": 1} }}{{ [1, 2] == (1, 2) }}{{ (1,) == (1,) }}
{{ "x" if messages[0].content is string else "y" }}{% if messages[0]["role"] == "system" %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]["content"] %}{% else %}{% set loop_messages = messages %}{% endif %}{{ loop_messages | length }}{{ system_message }}
""".strip("\n")


def slices():
    """Slices of texts and lists, over all signs, steps and lengths."""
    bounds = ["", "0", "1", "3", "9", "-1", "-2", "-9"]
    for step in ["", "1", "2", "3", "-1", "-2", "-9"]:
        for start in bounds:
            parts = [
                f"{{{{ {value}[{start}:{stop}:{step}] }}}}"
                for stop in bounds
                for value in ("''", "'a'", "'äbcd'", "[]", "[1, 2, 3]", "(1, 2)")
            ]
            yield " ".join(parts)


def formats():
    """Conversions of numbers and texts."""
    for flags in ["", "5", "-5", "05", "+", " ", "8.3", "-8.3", "+08.2", ".0", "#"]:
        for kind in "dfeEgGxXo":
            values = [0, 7, -42, 255] if kind in "dxXo" else [0, 1.5, -0.001234, 123456.789, 1e10]
            yield " ".join(f"{{{{ '%{flags}{kind}' % {value} }}}}" for value in values)
    for spec in ["", "5", "<6", ">6", "^6", "*^7", "06", "+", ",", ".2f", "10.3e", "g", ".3g", "%", "_"]:
        values = [0, 7, -42, 1.5, -0.001234, 123456.789, 1e10, 1e-7]
        yield " ".join(f"{{{{ '{{:{spec}}}'.format({value}) }}}}" for value in values)
    for value in ["1e16", "1e22", "1.1", "100.0", "1e-4", "1e-5", "123456789012345678.0", "0.1 + 0.2"]:
        yield f"{{{{ {value} }}}} {{{{ [{value}] }}}} {{{{ {value} | tojson }}}} {{{{ {value} | string }}}}"


def all_of_them():
    yield from BASIC.split("\n")
    yield BASIC
    yield from slices()
    yield from formats()
