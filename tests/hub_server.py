"""A Hugging Face Hub in a thread: it keeps what is pushed and serves it back, as the real client asks for it."""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer(ThreadingHTTPServer):
    """Repositories, by name: 'private', and 'commits', a list of (commit id, path -> bytes), newest last.

    Tokens: 'writer' may write, 'reader' may read. Of the files in `truncated`, (repository, path), half is sent.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.repos, self.objects, self.requests, self.truncated = {}, {}, Counter(), set()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}'

    def add(self, repo_id, files, private=False):
        repo = self.repos.setdefault(repo_id, dict(private=private, commits=[]))
        before = dict(repo['commits'][-1][1]) if repo['commits'] else {}
        before.update(files)
        sha = hashlib.sha1(repr((repo_id, len(repo['commits']))).encode()).hexdigest()
        repo['commits'].append((sha, before))
        return sha


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def answer(self, status, body=b'', **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers.setdefault('Content_Length', len(body))
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def fail(self, status, code):
        self.answer(status, dict(error=code), X_Error_Code=code, X_Error_Message=code)

    def find(self, repo_id, revision='main'):
        """The files of a repository at a revision; None after an answer that there is none, or that it is private."""
        repo = self.server.repos.get(repo_id)
        token = self.headers.get('Authorization', '').removeprefix('Bearer ')
        if repo is None or repo['private'] and token not in ('writer', 'reader'):
            self.fail(404 if token else 401, 'RepoNotFound')
            return None
        commits = [c for c in repo['commits'] if revision in ('main', c[0])]
        if not commits:
            self.fail(404, 'RevisionNotFound')
            return None
        return repo, *commits[-1]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split('?')[0]
        self.server.requests[self.command, path] += 1
        match = re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path)
        if match:
            repo_id, revision, name = match.groups()
            found = self.find(repo_id, revision)
            if found is None:
                return
            _, sha, files = found
            if name not in files:
                self.answer(404, b'', X_Error_Code='EntryNotFound', X_Repo_Commit=sha)
                return
            headers = dict(ETag=f'"{hashlib.sha256(files[name]).hexdigest()}"', X_Repo_Commit=sha)
            start = int((self.headers.get('Range') or 'bytes=0-').removeprefix('bytes=').split('-')[0])
            body, status = files[name][start:], 200
            if start:
                status = 206
                headers['Content_Range'] = f'bytes {start}-{len(files[name]) - 1}/{len(files[name])}'
            headers['Content_Length'] = len(body)
            if self.command == 'GET' and (repo_id, name) in self.server.truncated:
                self.close_connection = True
                body = body[: len(body) // 2]
            self.answer(status, body, **headers)
            return
        match = re.fullmatch(r'/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?', path)
        if match:
            found = self.find(match[1], match[2] or 'main')
            if found is not None:
                repo, sha, files = found
                self.answer(
                    200,
                    dict(
                        id=match[1],
                        modelId=match[1],
                        sha=sha,
                        private=repo['private'],
                        tags=[],
                        downloads=0,
                        likes=0,
                        siblings=[dict(rfilename=name) for name in files],
                    ),
                )
            return
        self.fail(404, 'NotFound')

    def do_PUT(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        if hashlib.sha256(body).hexdigest() == self.path.rsplit('/', 1)[1]:
            self.server.objects[self.path.rsplit('/', 1)[1]] = body
            self.answer(200)
        else:
            self.fail(400, 'BadHash')

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        path = self.path.split('?')[0]
        self.server.requests['POST', path] += 1
        token = self.headers.get('Authorization', '').removeprefix('Bearer ')
        if path == '/api/validate-yaml':
            bad = re.search(r'^license: (?!cc0-1.0|apache-2.0|cc-by-nc-4.0)', json.loads(body)['content'], re.M)
            errors = [dict(message='"license" must be one of [apache-2.0, cc0-1.0, cc-by-nc-4.0]')] if bad else []
            self.answer(400 if errors else 200, dict(errors=errors, warnings=[]))
        elif token not in ('reader', 'writer'):
            self.fail(401, 'Unauthorized')
        elif token == 'reader':
            self.fail(403, 'Forbidden')
        elif path == '/api/repos/create':
            asked = json.loads(body)
            repo_id = f'{asked.get("organization") or "writer"}/{asked["name"]}'
            exists = repo_id in self.server.repos
            if not exists:
                self.server.add(repo_id, {}, bool(asked.get('private')) or asked.get('visibility') == 'private')
            self.answer(409 if exists else 200, dict(url=f'{self.server.url}/{repo_id}', id=repo_id, name=repo_id))
        elif '/preupload/' in path:
            files = [
                dict(
                    path=file['path'],
                    uploadMode='lfs' if file['path'].endswith('.safetensors') else 'regular',
                    shouldIgnore=False,
                    oid=None,
                )
                for file in json.loads(body)['files']
            ]
            self.answer(200, dict(files=files))
        elif path.endswith('/info/lfs/objects/batch'):
            self.answer(
                200,
                dict(
                    transfer='basic',
                    objects=[
                        dict(
                            oid=item['oid'],
                            size=item['size'],
                            actions=dict(upload=dict(href=f'{self.server.url}/objects/{item["oid"]}')),
                        )
                        for item in json.loads(body)['objects']
                    ],
                ),
            )
        elif '/commit/' in path:
            repo_id = re.fullmatch(r'/api/models/([^/]+/[^/]+)/commit/[^/]+', path)[1]
            files = {}
            for line in body.splitlines():
                item = json.loads(line)
                if item['key'] == 'file':
                    files[item['value']['path']] = base64.b64decode(item['value']['content'])
                elif item['key'] == 'lfsFile':
                    files[item['value']['path']] = self.server.objects[item['value']['oid']]
            sha = self.server.add(repo_id, files)
            url = f'{self.server.url}/{repo_id}/commit/{sha}'
            self.answer(200, dict(success=True, commitOid=sha, commitUrl=url, pullRequestUrl=None))
        else:
            self.fail(404, 'NotFound')


@contextmanager
def hub_server():
    """A server that runs meanwhile."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.05), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
