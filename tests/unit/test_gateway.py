"""roles/gateway: its templates for sites, and its module for users and files."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from ansible.template import Templar, trust_as_template

from tests.unit.repository import ROOT, load, read_yaml, rendered, role_templar

state = load("plugins/modules/nginx_gateway.py")
ROLE = ROOT / "roles/gateway"

MLFLOW = {
    "name": "mlflow",
    "title": "Models & <experiments>",
    "upstreams": ["127.0.0.1:5000"],
    "health": "/health",
    "login": "basic",
    "login_passed": True,
    "routes": "mlflow/files/routes.yml",
    "stream_paths": ["/artifacts/"],
}
PREFECT = {
    "name": "prefect",
    "title": "Flows",
    "upstreams": ["unix:/run/prefect/api.sock"],
    "login": "basic",
    "routes": "prefect_server/files/routes.yml",
    "health": "/api/health",
    "open_paths": ["/api/ready"],
}
STORE = {
    "name": "s3",
    "title": "Files",
    "upstreams": ["127.0.0.1:9000"],
    "health": "/live",
    "stream_paths": ["/"],
    "link": "",
}
DELAY = {
    "name": "arrival-delay",
    "host": "inference",
    "path": "/delay",
    "title": "Delay",
    "upstreams": ["gpu-1:8000", "gpu-2:8001"],
    "protocol": "https",
    "health": "/health",
}
ELSEWHERE = PREFECT | {
    "upstreams": ["prefect.ml.example:443"],
    "protocol": "https",
    "served": False,
}
DATABASE = {
    "name": "postgresql",
    "host": "",
    "title": "Database",
    "section": "Facts & <such>",
    "link": "",
    "upstreams": ["unix:/run/status/http.sock"],
    "health": "/postgresql",
    "says": True,
    "served": False,
}
METRICS = {
    "name": "metrics",
    "title": "Metrics",
    "upstreams": ["127.0.0.1:8428"],
    "login": "basic",
    "routes": "monitoring/files/metrics_routes.yml",
    "health": "/health",
    "ingest": [{"path": "/api/v1/write", "query": "extra_label=host="}],
}
DOCS = {
    "name": "docs",
    "title": "Documentation",
    "root": "/opt/docs/current",
    "login": "basic",
    "routes": "gateway/files/docs_routes.yml",
    "health": "/health",
}
USERS = [
    {"name": "ada", "role": "admin", "password": "secret-one"},
    {"name": "b.d", "role": "admin", "password": "secret-two"},
    {"name": "vera", "role": "viewer", "password": "secret-three"},
]


def templar(**variables: Any) -> Templar:
    """Return a Templar with the role's defaults and vars, and these variables."""
    known = {"gateway_domain": "ml.example", "gateway_sites": [MLFLOW, PREFECT, STORE, DELAY], "gateway_users": USERS}
    return role_templar(ROLE, **known | variables)


def render(name: str, **variables: Any) -> str:
    return rendered(templar(**variables), ROLE / "templates" / name)


def block(text: str, start: str) -> str:
    """Return the lines of a block of nginx's configuration, up to the brace at its own depth."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip() == f"{start} {{")
    end = lines[first][: len(lines[first]) - len(lines[first].lstrip())] + "}"
    return "\n".join(lines[first : lines.index(end, first) + 1])


def problems(**variables: Any) -> list[str]:
    found = templar(**variables).template(trust_as_template("{{ __gateway_problems }}"))
    assert isinstance(found, list)
    return found


def test_no_password_is_in_configuration_page_or_unit() -> None:
    for name in ("nginx.conf.j2", "index.html", "unit.conf.j2"):
        text = render(name)
        assert "secret-" not in text
        assert "{{" not in text
        assert "{%" not in text


def test_braces_are_balanced_and_statements_end() -> None:
    text = re.sub(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|(?m:#.*$)', "", render("nginx.conf.j2"))
    depth = 0
    for line in text.splitlines():
        depth += line.count("{") - line.count("}")
        assert depth >= 0
    assert depth == 0


@pytest.mark.parametrize("sites", [[], [DOCS], [STORE], [PREFECT], [MLFLOW, PREFECT, STORE, DELAY], [ELSEWHERE]])
def test_every_variable_that_is_used_is_set(sites: list[dict[str, Any]]) -> None:
    """nginx refuses a configuration with one that is not, and which sites a host has depends on the inventory."""
    text = render("nginx.conf.j2", gateway_sites=sites)
    used = set(re.findall(r"[$](gateway_\w+)", text))
    named = re.findall(r"(?:^ *set [$]|^ *map .* [$]|[?]<)(gateway_\w+)", text, re.MULTILINE)
    assert used - set(named) == set()


def test_every_passed_on_request_has_its_origin_replaced() -> None:
    text = render("nginx.conf.j2")
    for name in ("@mlflow-plain", "@mlflow-stream", "@prefect-plain", "@s3-stream", "@arrival-delay-plain"):
        body = block(text, f"location {name}")
        for header in ("For", "Host", "Port", "Proto", "Prefix"):
            assert f"proxy_set_header X-Forwarded-{header} " in body
        assert "proxy_set_header Host $http_host;" in body
        assert ('proxy_set_header Authorization "";' in body) == ("prefect" in name)
        assert ("proxy_request_buffering off;" in body) == ("stream" in name)


def test_all_but_open_paths_require_a_login() -> None:
    server = block(render("nginx.conf.j2", gateway_sites=[PREFECT]), "location /api/ready".replace("/api", "= /api"))
    assert "auth_basic" not in server
    text = render("nginx.conf.j2", gateway_sites=[PREFECT | {"stream_paths": ["/up/"]}])
    assert text.count("auth_basic_user_file") == 2
    assert "auth_basic_user_file" in block(text, "location ^~ /up/")


def test_unlisted_routes_are_refused() -> None:
    text = render("nginx.conf.j2")
    whose = block(text, 'map "$gateway_verb $uri" $gateway_whose_mlflow')
    assert "default nobody;" in whose
    assert '"GET /ajax-api/2.0/mlflow/runs/get" viewer;' in whose
    assert '"~^[A-Z]+ /gateway/.*$" nobody;' in whose
    who = block(text, 'map "$gateway_role $gateway_whose_mlflow" $gateway_next_mlflow')
    assert "default -refused;" in who
    assert "inference" in who
    prefect = block(text, 'map "$gateway_role $gateway_whose_prefect" $gateway_next_prefect')
    assert '"~^inference ' not in prefect
    assert "$gateway_next_s3" not in text
    roles = block(text, "map $remote_user $gateway_role")
    assert r'"~^(?:ada|b\\.d)$" admin;' in roles
    assert "vera" not in roles
    assert "default viewer;" in roles
    assert "default viewer;" in block(render("nginx.conf.j2", gateway_users=[]), "map $remote_user $gateway_role")


def test_pages_load_and_call_the_platform_alone() -> None:
    text = render("nginx.conf.j2")
    assert "add_header Content-Security-Policy $gateway_policy always;" in text
    sent = block(text, "map $sent_http_content_type $gateway_policy")
    (policy,) = re.findall(r'default "(.*)";', sent)
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    platform = {"'self'", "https://*.ml.example", "wss://*.ml.example"}
    for sources in rules.values():
        elsewhere = {source for source in sources if "//" in source or "*" in source} - platform
        assert elsewhere == set()
    assert rules["object-src"] == ["'none'"]
    figures = render("nginx.conf.j2", gateway_script_origins=["https://cdn.plot.ly"])
    (with_figures,) = re.findall(r'default "(default-src .*)";', figures)
    assert with_figures == policy.replace("'unsafe-eval'", "'unsafe-eval' https://cdn.plot.ly")
    for wrong in ("cdn.plot.ly", "https://*", "https://x; connect-src *"):
        (problem,) = problems(gateway_script_origins=[wrong])
        assert "such as https://cdn.plot.ly" in problem


def test_the_page_says_which_parts_the_password_opens() -> None:
    page = render("index.html", gateway_sites=[PREFECT, STORE | {"name": "console", "title": "Console"}])
    assert "One name and one password open Flows; ask" in page
    assert "The object store asks for a key instead" in page
    assert "The object store asks" not in render("index.html", gateway_sites=[PREFECT])


def test_every_refusal_says_why_in_the_form_that_clients_read() -> None:
    text = render("nginx.conf.j2", gateway_sites=[MLFLOW | {"pauses": True}, STORE | {"errors": "s3"}, DELAY, METRICS])
    messages = block(text, 'map "$status $gateway_reason" $gateway_message')
    programs, pages, store = (
        templar().template(trust_as_template(f"{{{{ __gateway_forms[{at}][2] }}}}")) for at in range(3)
    )
    for reason in re.findall(r'"~\^(.*?)" "(?:.*)";', messages):
        (message,) = re.findall(rf'"~\^{re.escape(reason)}" "(.*)";', messages)
        said = json.loads(programs.replace("$gateway_message", message))
        assert {said["message"], said["detail"], said["error"]} == {message}
        told = ElementTree.fromstring(store.replace("$gateway_message", message))
        assert (told.tag, told.findtext("Code"), told.findtext("Message")) == ("Error", "$gateway_store_code", message)
        assert f'"~^{reason}" ' in block(text, 'map "$status $gateway_reason" $gateway_error_code')
        assert f'"~^{reason}" ' in block(text, 'map "$status $gateway_reason" $gateway_store_code')
    assert "<p>$gateway_message</p>" in pages
    servers = re.split(r"\n    server \{\n", text)[4:]
    assert len(servers) == 4
    for server, form in zip(servers, ("$gateway_form", "$gateway_form", "$gateway_form", "s3"), strict=True):
        # Those of the server, before the first location that has its own.
        at_once, unread, headers = re.findall(r"error_page (.*);", server)[:3]
        *statuses, where = at_once.split()
        assert where == f"@refused-{form}"
        assert (unread, headers) == (f"400 414 /refused/{form}", f"494 =431 /refused/{form}")
        for status in [*statuses, "400", "414", "431"]:
            assert re.search(rf'"~\^{status}|50\[234\]|500" ', messages), status
        assert "internal;" in block(server, "location = /refused/" + form.replace("$gateway_form", "html"))
        assert not re.search(r"return [45]\d\d '", server)
    reasons = set(re.findall(r"set \$gateway_reason (\w+);", text))
    assert reasons == set(re.findall(r'"~\^\d+ (\w+)" ', messages))


def test_only_hosts_of_the_inventory_send_and_each_as_itself() -> None:
    text = render("nginx.conf.j2", gateway_sites=[METRICS], gateway_senders=["gpu-1", "b" * 70])
    known = block(text, 'map "$ssl_client_verify $ssl_client_s_dn" $gateway_sender')
    assert re.findall(r'"(.*)" (.*);', known) == [
        ("SUCCESS CN=gpu-1", "gpu-1"),
        (f"SUCCESS CN={'b' * 64}", "b" * 70),  # a certificate has no longer names
    ]
    server = text[text.index("server_name metrics.") :]
    assert "ssl_verify_client optional;" in server
    taken = block(server, "location = /api/v1/write")
    assert "proxy_pass http://metrics/api/v1/write?extra_label=host=$gateway_sender;" in taken
    assert "proxy_pass_request_headers off;" in taken
    refused = block(taken, 'if ($gateway_sender = "")').split()
    assert refused[-6:] == ["set", "$gateway_reason", "sender;", "return", "403;", "}"]


def test_nobody_shows_a_certificate_where_no_site_wants_one() -> None:
    text = render("nginx.conf.j2", gateway_sites=[MLFLOW, STORE], gateway_senders=["gpu-1"])
    assert "ssl_verify_client" not in text
    assert "$gateway_sender" not in text


def test_largest_body_holds_before_and_after_the_login() -> None:
    """nginx compares Content-Length in the first location, before it goes on to the named one."""
    text = render("nginx.conf.j2", gateway_sites=[DELAY | {"body_limit": "64m"}])
    for start in ("location /delay/", "location @arrival-delay-plain"):
        assert "client_max_body_size 64m;" in block(text, start)


def test_long_filters_fit_into_a_url() -> None:
    """MLflow's clients send `run_id IN (…)` by GET: 400 ids are 17 kB."""
    assert "large_client_header_buffers 2 64k;" in render("nginx.conf.j2")


def test_each_host_of_a_site_is_verified_by_its_own_name() -> None:
    names = block(render("nginx.conf.j2"), "map $upstream_addr $gateway_peer_arrival_delay")
    assert "default nobody.invalid;" in names
    assert r'"~(?:^|[ ,])\Q@address:gpu-2@:8001\E$" gpu-2;' in names


def test_page_escapes_and_lists() -> None:
    page = render("index.html")
    assert page.startswith("<!doctype html>\n")
    assert "Models &amp; &lt;experiments&gt;" in page
    assert page.count("data-health=") == 4
    assert 'href="https://inference.ml.example/delay/"' in page
    assert 'href="https://s3.ml.example' not in page


def test_page_shows_what_cannot_be_checked_about_a_model() -> None:
    assert '<p class="says">' not in render("index.html", gateway_sites=[MLFLOW, DELAY])
    page = render("index.html", gateway_sites=[MLFLOW, DELAY | {"says": True}])
    assert page.count('<p class="says">') == 1
    assert "found.warnings" in page


def test_page_has_sections_in_the_order_of_their_first_part() -> None:
    page = render("index.html", gateway_sites=[DATABASE, DELAY, DATABASE | {"name": "other"}, MLFLOW])
    assert re.findall(r"<h2>(.*)</h2>", page) == ["Facts &amp; &lt;such&gt;", "Services", "First steps"]
    assert re.findall(r'data-health="/health/(.*?)"', page) == ["postgresql", "other", "arrival-delay", "mlflow"]
    assert page.count('<p class="says">') == 2


def test_sites_served_elsewhere_are_only_listed() -> None:
    text = render("nginx.conf.j2", gateway_sites=[ELSEWHERE, DATABASE, MLFLOW])
    assert re.findall(r"^ +server_name (.*);", text, re.MULTILINE) == ["ml.example", "mlflow.ml.example"]
    assert "$gateway_next_prefect" not in text
    health = block(text, "location = /health/prefect")
    assert "proxy_pass https://prefect/api/health;" in health
    assert "proxy_ssl_name $gateway_peer_prefect;" in health
    assert "proxy_set_header Host prefect.ml.example;" in health
    assert "proxy_set_header Host localhost;" in block(text, "location = /health/postgresql")
    page = render("index.html", gateway_sites=[ELSEWHERE, DATABASE])
    assert 'href="https://prefect.ml.example/"' in page
    assert "postgresql.ml.example" not in page
    assert "https://.ml.example" not in page


def test_files_are_served_behind_the_same_login_as_a_program() -> None:
    text = render("nginx.conf.j2", gateway_sites=[MLFLOW, DOCS])
    socket = "unix:/run/nginx/files-docs.sock"
    assert f"server {socket};" in block(text, "upstream docs")
    assert text.count("root /opt/docs/current;") == 1
    files = text[text.index(f"listen {socket};") : text.index("# The start page.")]
    assert "root /opt/docs/current;" in files
    assert "default_type text/plain;" in files
    assert "error_page 404 /404.html;" in files
    (policy,) = re.findall(r'Content-Security-Policy "(.*)" always;', files)
    assert {"default-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
    server = text[text.index("server_name docs.ml.example;") :]
    assert "auth_basic_user_file" in block(server, "location /")
    assert "proxy_pass http://docs/health;" in block(text, "location = /health/docs")
    routes = block(text, 'map "$gateway_verb $uri" $gateway_whose_docs')
    assert re.findall(r'"(.*)" (\w+);', routes) == [("~^GET /.*$", "viewer")]


def test_files_that_another_gateway_serves_are_not_looked_for_here() -> None:
    site = DOCS | {"served": False, "protocol": "https", "upstreams": ["docs.ml.example:443"]}
    text = render("nginx.conf.j2", gateway_sites=[site])
    assert "/opt/docs" not in text
    assert "server @address:docs.ml.example@:443;" in block(text, "upstream docs")


def test_valid_variables_have_no_problems() -> None:
    assert problems() == []
    assert problems(gateway_sites=[ELSEWHERE, DATABASE, DOCS]) == []
    assert problems(gateway_sites=[], gateway_users=[]) == []


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"name": "ML", "host": "a"}, "lower-case letters"),
        ({"host": "a.b"}, "lower-case letters"),
        ({"host": ""}, "lower-case letters"),
        ({"path": "/a/"}, "without a slash at its end"),
        ({"path": "delay"}, "without a slash at its end"),
        ({"health": "/h;"}, "must be paths"),
        ({"open_paths": ["/a b"]}, "must be paths"),
        ({"stream_paths": ["/a}"]}, "must be paths"),
        ({"upstreams": []}, "upstreams must be host:port"),
        ({"upstreams": ["a"]}, "upstreams must be host:port"),
        ({"upstreams": ["unix:/a", "b:1"]}, "upstreams must be host:port"),
        ({"upstreams": ["unix:/a"], "protocol": "https"}, "upstreams must be host:port"),
        ({"root": "docs/../x;"}, "root must be an absolute path"),
        ({"routes": ""}, "with login basic, routes must say who may call what"),
    ],
)
def test_variables_that_would_break_the_configuration_are_refused(site: dict[str, Any], message: str) -> None:
    (problem,) = problems(gateway_sites=[MLFLOW | site])
    assert message in problem


def test_users_are_hashed_once() -> None:
    users = {"ada": "pass word", "zoe": "ü"}
    first = state.users_file(users, "")
    assert [line.split(":")[0] for line in first.splitlines()[1:]] == ["ada", "zoe"]
    assert "pass word" not in first
    assert state.users_file(users, first) == first
    changed = state.users_file(users | {"ada": "other"}, first)
    assert changed.splitlines()[1] != first.splitlines()[1]
    assert changed.splitlines()[2] == first.splitlines()[2]
    assert "zoe" not in state.users_file({"ada": "pass word"}, first)


@pytest.mark.parametrize(
    "damaged", ["ada:", "ada:$5$rounds=1000$", "ada:plain", "ada:{PLAIN}one", "ada:$1$x$y", "junk"]
)
def test_a_damaged_hash_is_replaced(damaged: str) -> None:
    line = state.users_file({"ada": "one"}, damaged).splitlines()[1]
    assert re.fullmatch(r"ada:\$5\$rounds=1000\$[0-9a-f]{16}\$[./0-9A-Za-z]{43}", line)


def test_hash_is_sha256_crypts() -> None:
    """The result of `openssl passwd -5 -salt saltstring`."""
    hashed = "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"
    assert state.crypt("Hello world!", "$5$saltstring") == hashed


def test_placeholders_are_filled_in() -> None:
    text = "server @address:gpu-1@:8000; style '@sha256:style@' script '@sha256:script@' return @revision@;"
    page = "<style>a</style><script>b</script>"
    filled, revision = state.fill(text, page, [b"certificate"], lambda host: f"address-of-{host}")
    assert filled == (
        "server address-of-gpu-1:8000; style 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs=' "
        f"script 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0=' return {revision};"
    )
    for changed in ((text, page, [b"renewed"]), (text + " ", page, [b"certificate"]), (text, page, [])):
        assert state.fill(*changed, lambda host: f"address-of-{host}")[1] != revision
    assert state.fill(text, page, [b"certificate"], lambda host: "moved")[1] != revision


def test_the_known_address_of_a_host_precedes_what_its_name_leads_to() -> None:
    """An image's /etc/hosts may have 127.0.1.1 for the host's own name, and firewalls know one address."""
    gateway = SimpleNamespace(wants={"addresses": {"localhost": "fd00::11", "alias": "localhost"}})
    assert state.Gateway.address(gateway, "localhost") == "[fd00::11]"
    assert state.Gateway.address(gateway, "alias") == state.Gateway.address(gateway, "127.0.0.1") == "127.0.0.1"


def test_addresses_are_written_as_nginx_wants_them() -> None:
    assert state.address("127.0.0.1") == "127.0.0.1"
    assert state.address("[::1]") == "[::1]"
    with pytest.raises(OSError, match=r".+"):
        state.address("nowhere.invalid")


def test_site_defaults_are_the_specs() -> None:
    spec = read_yaml(ROLE / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]["gateway_sites"]["options"]
    told = {name: option["default"] for name, option in spec.items() if "default" in option}
    assert read_yaml(ROLE / "vars/main.yml")["__gateway_site_defaults"] == told


def test_a_gateway_updated_by_another_host_gets_all_its_own_variables() -> None:
    tasks = read_yaml(ROLE / "tasks/register_host.yml")
    told = next(task["vars"]["__gateway_theirs"] for task in tasks if "metalworks.platform.nginx_gateway" in task)
    assert set(told) == set(read_yaml(ROLE / "meta/argument_specs.yml")["argument_specs"]["main"]["options"])


def test_destructive_s3_requests_are_not_passed_on() -> None:
    text = render("nginx.conf.j2", gateway_sites=[STORE | {"snippets": "object_store/files/nginx"}])
    server = text[text.index("server_name s3.ml.example;") :]
    assert "if ($s3_refused) {" in server
    assert "\n        location ^~ /minio/ {\n            return 404;\n        }\n" in server
    maps = text[: text.index("server {")]
    (refused,) = re.findall(r'map "((?:\$http_x_\w+){2,})" \$s3_header', maps)
    removed = re.findall(r'proxy_set_header (X-\S+|Versionid) "";', block(text, "location @s3-stream"))
    assert {"X-Minio-Force-Delete", "X-Minio-Source-Mtime", "X-Amz-Meta-Snowball-Auto-Extract"} <= set(removed)
    names = [f"$http_{name.lower().replace('-', '_')}" for name in removed if name.startswith(("X-Minio", "X-Amz"))]
    assert "".join(names) == refused
    assert "Versionid" in removed
    assert "s3_refused" not in render("nginx.conf.j2")


def test_a_site_of_another_gateway_adds_no_rules() -> None:
    site = STORE | {"snippets": "object_store/files/nginx", "served": False}
    assert "s3_" not in render("nginx.conf.j2", gateway_sites=[site])


def test_only_sites_that_pause_look_for_the_file() -> None:
    text = render("nginx.conf.j2", gateway_sites=[MLFLOW | {"pauses": True}, PREFECT])
    looks = "if (-f /etc/nginx/metalworks/paused) {"
    assert looks in block(text, "location @mlflow-plain")
    assert looks in block(text, "location @mlflow-stream")
    assert looks not in block(text, "location @prefect-plain")
    assert '"503 paused" 30;' in block(text, 'map "$status $gateway_reason" $gateway_retry_after')


def test_only_writes_to_sites_that_pause_them_look_for_the_other_file() -> None:
    text = render("nginx.conf.j2", gateway_sites=[STORE | {"pauses_writes": True}, PREFECT])
    assert text.count("if (-f $gateway_write_pause) {") == 1
    paths = block(text, "map $request_method $gateway_write_pause")
    assert re.findall(r"(\w+) (\S+);", paths) == [
        ("default", "/etc/nginx/metalworks/paused-writes"),
        ("GET", "/etc/nginx/metalworks/paused-writes/never"),
        ("HEAD", "/etc/nginx/metalworks/paused-writes/never"),
    ]


STATUS = "/run/platform-status/http.sock"


def test_what_ran_is_told_only_to_people_who_have_logged_in() -> None:
    text = render("nginx.conf.j2", gateway_status_socket=STATUS)
    night = block(text, "location = /status/night")
    assert "auth_basic_user_file /etc/nginx/metalworks/users;" in night
    assert "limit_req zone=people" in night
    assert "try_files /- @status-night$gateway_night_next;" in night
    assert "proxy_pass" not in night, "what the login guards is in a place of its own"
    for refused in ('if ($http_authorization = "")', "if ($gateway_foreign)", "if ($args)"):
        assert refused in night
    # Headers of its own replace those of http, of which one would make a browser ask for a password.
    assert "add_header" in night
    assert "WWW-Authenticate" not in night
    who = block(text, "map $gateway_role $gateway_night_next")
    assert "inference -refused;" in who
    asked = block(text, "location @status-night")
    assert f"proxy_pass http://unix:{STATUS};" in asked
    assert "proxy_pass_request_headers off;" in asked, "a password goes nowhere else"
    assert "return 403;" in block(text, "location @status-night-refused")
    login = block(text, "location = /status/login")
    assert "auth_basic_user_file /etc/nginx/metalworks/users;" in login
    assert "return 303 https://ml.example/;" in block(text, "location @status-login")
    assert text.count(f"unix:{STATUS}") == 1, "metrics, which name flows, are not passed on"
    assert "/status/" not in render("nginx.conf.j2")
    assert "limit_req_zone" in render("nginx.conf.j2", gateway_status_socket=STATUS, gateway_sites=[STORE])


def test_the_page_offers_a_login_and_holds_nothing_confidential() -> None:
    page = render("index.html", gateway_status_socket=STATUS, gateway_sites=[PREFECT, DATABASE])
    assert '<a href="/status/login">Log in to see what ran last night</a>' in page
    assert 'data-prefect="https://prefect.ml.example"' in page
    assert 'data-prefect="' not in render("index.html", gateway_status_socket=STATUS, gateway_sites=[MLFLOW])
    assert "/status/login" not in render("index.html")
    assert "innerHTML" not in page, "names that people chose are text, never markup"
    loaded = re.findall(r' (?:src|href)="(.*?)"', page.split("<script>")[0])
    assert len(loaded) == 4
    assert [one for one in loaded if not re.match(r"https://[a-z.]*ml\.example/|/|data:image/", one)] == []


def test_a_socket_of_the_status_program_is_a_path() -> None:
    assert problems(gateway_status_socket=STATUS) == []
    for wrong in ("run/x", "/run/x;", "/run/x y"):
        (problem,) = problems(gateway_status_socket=wrong)
        assert "is not a path" in problem
