"""Has the programs of the gateway and of the migration trust the authorities in certs/ of the deployment.

litellm-units puts this behind arguments.py. Python's and Node's libraries and libpq read one file with all authorities,
so those of the image are in it, too. It is in memory, and made anew at each start.
"""

import pathlib

CERTIFICATES = "/app/certs"
BUNDLE = "/dev/shm/litellm-units.pem"
# Who reads which: OpenSSL, Python's ssl and httpx; requests; boto3; Node.js; libpq.
BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PGSSLROOTCERT")


def end(problem):
    print(problem, file=sys.stderr)
    # litellm.service and litellm-migrate.service are not restarted after this status.
    sys.exit(78)


def trust_certificates():
    files = [each for each in sorted(pathlib.Path(CERTIFICATES).rglob("*")) if each.is_file() and each.name[0] != "."]
    # A worker has the variables of the first process.
    if not files or os.environ.get("SSL_CERT_FILE") == BUNDLE:
        return
    import ssl

    import certifi

    base = pathlib.Path(os.environ.get("SSL_CERT_FILE") or certifi.where())
    try:
        texts = [base.read_bytes()]
    except OSError as error:
        end(f"the container can't read {base}, which SSL_CERT_FILE names: {error.strerror}")
    for each in files:
        name = f"certs/{each.relative_to(CERTIFICATES)}"
        try:
            texts.append(each.read_bytes())
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(each)
        except ssl.SSLError as error:
            end(f"{name} contains a certificate that OpenSSL refuses: {error}")
        except OSError as error:
            end(f"the user of the container can't read {name}: {error.strerror}")
    pathlib.Path(BUNDLE).write_bytes(b"\n".join(texts))
    os.environ["SSL_CERT_FILE"] = BUNDLE
    for name in BUNDLE_VARIABLES:
        os.environ.setdefault(name, BUNDLE)


trust_certificates()
