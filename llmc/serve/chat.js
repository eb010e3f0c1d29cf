/* chat.js - the page for chats: asks the server that it came from, shows answers while they are sampled.
 * Every text becomes a text node, so that what a model writes is never markup. */
(function () {
    var columns = [];
    var running = 0;
    var key = '';
    var models = [];

    function id(name) {
        return document.getElementById(name);
    }

    function showError(text) {
        id('error').textContent = text;
        id('error').hidden = !text;
    }

    function headers() {
        var all = { 'Content-Type': 'application/json' };
        if (key) all.Authorization = 'Bearer ' + key;
        return all;
    }

    /* ---- columns ---- */

    /* Fills in the models of a column's list; column i begins with model i. */
    function offerModels(list, i) {
        list.textContent = '';
        models.forEach(function (name) {
            var option = document.createElement('option');
            option.value = option.textContent = name;
            list.appendChild(option);
        });
        if (models.length) list.value = models[Math.min(i, models.length - 1)];
        list.parentNode.hidden = models.length < 2;
    }

    function summarize(column) {
        var parts = [];
        Object.keys(column.setting).forEach(function (name) {
            var value = column.setting[name].value;
            var listed = name === 'model' ? models.length > 1 : name !== 'system' && name !== 'stop';
            if (listed && value !== '') parts.push(name === 'model' ? value : name + ' ' + value);
        });
        column.summary.textContent = 'Settings: ' + (parts.join(', ') || 'those of the server');
    }

    function addColumn() {
        var section = id('column').content.cloneNode(true).querySelector('section');
        var column = {
            section: section,
            log: section.querySelector('.log'),
            summary: section.querySelector('summary'),
            setting: {},
            turns: [],
            abort: null
        };
        offerModels(section.querySelector('[data-name=model]'), columns.length);
        section.setAttribute('aria-label', 'Conversation ' + (columns.length + 1));
        section.querySelectorAll('[data-name]').forEach(function (field) {
            var name = field.getAttribute('data-name');
            column.setting[name] = field;
            if (columns.length && name !== 'model') field.value = columns[0].setting[name].value;
            field.addEventListener('input', function () {
                summarize(column);
            });
        });
        columns.push(column);
        id('columns').appendChild(section);
        summarize(column);
        if (columns.length > 1 && models.length < 2) section.querySelector('details').open = true;
    }

    /* Adds a turn to the column's log. */
    function addTurn(column, role, text) {
        var box = document.createElement('div');
        var who = document.createElement('div');
        var said = document.createElement('div');
        var note = document.createElement('div');
        box.className = 'turn ' + role;
        who.className = 'who';
        said.className = 'said';
        note.className = 'note';
        said.dir = 'auto';
        who.textContent = role;
        said.textContent = text;
        box.appendChild(who);
        box.appendChild(said);
        box.appendChild(note);
        column.log.appendChild(box);
        column.log.scrollTop = column.log.scrollHeight;
        var turn = { role: role, text: text, box: box, said: said, note: note };
        column.turns.push(turn);
        return turn;
    }

    function extend(column, turn, text) {
        var log = column.log;
        var following = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
        turn.text += text;
        turn.said.textContent = turn.text;
        if (following) log.scrollTop = log.scrollHeight;
    }

    /* ---- requests ---- */

    /* The body of a request for the column's next turn. */
    function request(column) {
        var body = { model: column.setting.model.value, stream: true, stream_options: { include_usage: true } };
        ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed'].forEach(function (name) {
            var value = column.setting[name].value;
            if (value !== '') body[name] = Number(value);
        });
        if (column.setting.stop.value) body.stop = [column.setting.stop.value];
        if (id('mode').value === 'text') {
            body.prompt = column.turns.map(function (turn) { return turn.text; }).join('');
            return body;
        }
        body.messages = column.turns.map(function (turn) { return { role: turn.role, content: turn.text }; });
        if (column.setting.system.value) body.messages.unshift({ role: 'system', content: column.setting.system.value });
        return body;
    }

    /* Reads the events of a stream, which may be divided anywhere. */
    function readEvents(reader, event) {
        var decoder = new TextDecoder();
        var rest = '';
        function next(part) {
            rest += part.done ? decoder.decode() : decoder.decode(part.value, { stream: true });
            for (var at = rest.indexOf('\n\n'); at >= 0; at = rest.indexOf('\n\n')) {
                var line = rest.slice(0, at);
                rest = rest.slice(at + 2);
                if (line.indexOf('data: ') === 0 && line !== 'data: [DONE]') event(JSON.parse(line.slice(6)));
            }
            return part.done ? undefined : reader.read().then(next);
        }
        return reader.read().then(next);
    }

    /* Adds an event to the turn. */
    function take(column, turn, event) {
        if (event.error) throw new Error(event.error.message);
        if (event.usage) turn.tokens = event.usage.completion_tokens;
        event.choices.forEach(function (choice) {
            var text = choice.delta ? choice.delta.content : choice.text;
            if (text) extend(column, turn, text);
            if (choice.finish_reason === 'length') turn.ending = 'truncated at the maximum of tokens';
        });
    }

    function update() {
        id('send').disabled = running > 0;
        id('stop').disabled = !running;
        id('again').disabled = running > 0 || !columns.some(function (column) {
            return column.turns.length && column.turns[column.turns.length - 1].role === 'assistant';
        });
        id('clear').disabled = id('compare').disabled = id('mode').disabled = running > 0;
    }

    function fail(turn, error) {
        if (error.name === 'AbortError') turn.ending = 'stopped';
        else showError(error.message);
    }

    /* Asks for the column's next turn. */
    function answer(column) {
        var path = id('mode').value === 'text' ? '/v1/completions' : '/v1/chat/completions';
        var body = JSON.stringify(request(column));
        var turn = addTurn(column, 'assistant', '');
        var began = Date.now();
        column.abort = new AbortController();
        running++;
        update();
        fetch(path, { method: 'POST', headers: headers(), body: body, signal: column.abort.signal })
            .then(function (response) {
                if (response.ok) return readEvents(response.body.getReader(), function (event) { take(column, turn, event); });
                return response.json().then(function (refused) {
                    if (response.status === 401) id('unlock').hidden = false;
                    throw new Error(refused.error.message);
                });
            })
            .catch(function (error) { fail(turn, error); })
            .then(function () {
                var seconds = (Date.now() - began) / 1000;
                var rate = turn.tokens ? turn.tokens + ' tokens, ' + (turn.tokens / seconds).toFixed(1) + ' per second' : '';
                turn.note.textContent = [rate, turn.ending].filter(Boolean).join('; ');
                if (!turn.text && !turn.tokens) {
                    turn.box.remove();
                    column.turns.pop();
                }
                running--;
                update();
            });
    }

    /* ---- the page ---- */

    function send() {
        var text = id('message').value;
        if (running || !text) return;
        showError('');
        id('message').value = '';
        columns.forEach(function (column) {
            addTurn(column, 'user', text);
            answer(column);
        });
    }

    function again() {
        showError('');
        columns.forEach(function (column) {
            var last = column.turns[column.turns.length - 1];
            if (!last || last.role !== 'assistant') return;
            last.box.remove();
            column.turns.pop();
            answer(column);
        });
    }

    function clear() {
        showError('');
        columns.forEach(function (column) {
            column.turns = [];
            column.log.textContent = '';
        });
        update();
        id('message').focus();
    }

    function compare() {
        if (id('compare').checked) addColumn();
        else columns.pop().section.remove();
        clear();
    }

    function load() {
        fetch('/v1/models', { headers: headers() })
            .then(function (response) {
                return response.json().then(function (list) {
                    id('unlock').hidden = response.status !== 401;
                    if (!response.ok) throw new Error(list.error.message);
                    showError('');
                    models = list.data.map(function (model) { return model.id; });
                    id('model').textContent = document.title = models.join(', ');
                    columns.forEach(function (column, i) {
                        offerModels(column.setting.model, i);
                        summarize(column);
                    });
                    if (models.length > 1 && columns.length < 2) {
                        id('compare').checked = true;
                        addColumn();
                    }
                });
            })
            .catch(function (error) { showError(error.message); });
    }

    id('ask').addEventListener('submit', function (event) {
        event.preventDefault();
        send();
    });
    id('message').addEventListener('keydown', function (event) {
        if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        send();
    });
    id('stop').addEventListener('click', function () {
        columns.forEach(function (column) {
            if (column.abort) column.abort.abort();
        });
    });
    id('again').addEventListener('click', again);
    id('clear').addEventListener('click', clear);
    id('compare').addEventListener('change', compare);
    id('mode').addEventListener('change', clear);
    id('unlock').addEventListener('submit', function (event) {
        event.preventDefault();
        key = id('key').value;
        load();
    });
    id('compare').checked = false;
    addColumn();
    load();
    update();
})();
