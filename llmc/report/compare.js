/* compare.js - the charts of several runs (compare.h): by step, tokens or time, with a logarithmic axis, for a range of x.
 *
 * Without this script the page has its static drawings. It uses plot.js.
 *
 * A comment has lines of its own: it is left out of the page, like the indentation.
 */
(function () {
    var form = document.getElementById('controls'), charts = [], started = false;
    /* The run that the slider of the option has chosen; -1: none. */
    var chosen = -1;
    var LEFT = 40, RIGHT = 318, TOP = 22, BOTTOM = 156;
    /* CHART_COLOURS and CHART_DASHES of chart.h. */
    var COLOURS = 8, DASHES = 5;

    function make(to, tag, o, text) {
        var e = document.createElementNS(plot.SVG, tag);
        for (var k in o) e.setAttribute(k, o[k]);
        if (text !== undefined) e.textContent = text;
        to.appendChild(e);
        return e;
    }

    /* The settings of the form; a range that is not given is everything. */
    function settings() {
        var mode = 'step', from = form.elements.from.value, to = form.elements.to.value;
        Array.prototype.forEach.call(form.elements.x, function (e) { if (e.checked) mode = e.value; });
        return {mode: mode, log: form.elements.log.checked, from: from === '' ? -Infinity : +from,
            to: to === '' ? Infinity : +to};
    }

    /* Where a letter that belongs at (x, y) overlaps none of the letters before it: chart_letter() of chart.h. */
    function place(x, y, before) {
        var p, up = y > (TOP + BOTTOM) / 2 ? -11 : 11;
        function near(q) { return Math.abs(q[0] - p[0]) < 9 && Math.abs(q[1] - p[1]) < 11; }
        for (var k = 0; !p || before.some(near); k++) p = [x + 9 * (k % 3), y + up * Math.floor(k / 3)];
        before.push(p);
        return p;
    }

    /* Draws a chart again, for which its points are read, the first time. */
    function draw(c) {
        var s = settings(), svg = c.svg, y;
        if (!c.d) c.d = JSON.parse(c.script.textContent);
        var lists = c.d.lines.map(function (l) { return plot.points(l, s.mode, s.log, s.from, s.to); });
        var x = plot.extent(lists, 0);
        while (svg.firstChild) svg.removeChild(svg.firstChild);
        c.range = x;
        if (!x) {
            make(svg, 'text', {class: 'axis', x: 185, y: 90, 'text-anchor': 'middle'}, 'no value to draw');
            return;
        }
        y = plot.extent(lists, 1);
        if (s.log && y[0] <= 0) y[0] = y[1] / 10;
        var X = plot.scale(x[0], x[1], LEFT, RIGHT, false), Y = plot.scale(y[0], y[1], BOTTOM, TOP, s.log);
        plot.ticks(y[0], y[1], 5, s.log).forEach(function (v) {
            make(svg, 'path', {class: 'grid', d: 'M' + LEFT + ' ' + Y(v).toFixed(1) + 'H' + RIGHT});
            make(svg, 'text', {class: 'tick', x: LEFT - 5, y: Y(v) + 3.2, 'text-anchor': 'end'},
                plot.say(v, c.d.share));
        });
        plot.ticks(x[0], x[1], 4, false).forEach(function (v) {
            make(svg, 'path', {class: 'grid base', d: 'M' + X(v).toFixed(1) + ' ' + BOTTOM + 'v3'});
            make(svg, 'text', {class: 'tick', x: X(v), y: BOTTOM + 14, 'text-anchor': 'middle'}, plot.say(v));
        });
        make(svg, 'text', {class: 'axis', x: RIGHT + 8, y: BOTTOM + 14}, s.mode === 'time' ? 's' : s.mode);
        make(svg, 'text', {class: 'axis', x: LEFT - 5, y: 12}, c.d.unit + (s.log ? ', logarithmic' : ''));
        var letters = [];
        lists.forEach(function (list, i) {
            if (!list.length) return;
            var run = c.d.lines[i].run, last = list[list.length - 1];
            var faded = chosen >= 0 && run !== chosen ? ' faded' : '';
            var g = make(svg, 'g', {class: 'd' + run % DASHES + faded}), colour = 'a' + run % COLOURS;
            make(g, 'path', {class: 'line ' + colour, d: plot.path(list, X, Y)});
            var at = place(X(last[0]) + 4, Y(last[1]) + 3.8, letters);
            make(svg, 'text', {class: 'last ' + colour, x: at[0], y: at[1]}, String.fromCharCode(65 + run));
        });
    }

    function all() {
        started = true;
        charts.forEach(draw);
    }

    /* The value of x under the pointer. */
    function pointed(c, ev) {
        var r = c.svg.getBoundingClientRect(), u = ((ev.clientX - r.left) / r.width * 360 - LEFT) / (RIGHT - LEFT);
        return c.range[0] + Math.max(0, Math.min(1, u)) * (c.range[1] - c.range[0]);
    }

    function everything() {
        form.elements.from.value = form.elements.to.value = '';
        all();
    }

    /* A drag over a chart selects a range of x for all charts. */
    function listen(c) {
        var begin = null, mark = null;
        c.svg.addEventListener('pointerdown', function (ev) {
            if (!started) all();
            if (!c.range) return;
            begin = pointed(c, ev);
            mark = make(c.svg, 'rect', {class: 'zoom', y: TOP, height: BOTTOM - TOP, width: 0});
            c.svg.setPointerCapture(ev.pointerId);
        });
        c.svg.addEventListener('pointermove', function (ev) {
            if (begin === null) return;
            var X = plot.scale(c.range[0], c.range[1], LEFT, RIGHT, false), a = X(begin), b = X(pointed(c, ev));
            mark.setAttribute('x', Math.min(a, b));
            mark.setAttribute('width', Math.abs(a - b));
        });
        c.svg.addEventListener('pointerup', function (ev) {
            if (begin === null) return;
            var end = pointed(c, ev), from = Math.min(begin, end), to = Math.max(begin, end);
            begin = null;
            mark.remove();
            if (to - from < (c.range[1] - c.range[0]) / 100) return;
            form.elements.from.value = +from.toPrecision(6);
            form.elements.to.value = +to.toPrecision(6);
            all();
        });
        c.svg.addEventListener('dblclick', everything);
    }

    document.querySelectorAll('figure script').forEach(function (script) {
        var c = {svg: script.previousElementSibling, script: script, d: null, range: null};
        charts.push(c);
        listen(c);
    });
    /* A slider over the runs that differ in one option: it marks the run in the table and in all charts. */
    var slider = document.getElementById('slider'), rows = document.querySelectorAll('tr[data-run]');
    if (slider) {
        var input = document.createElement('input'), label = document.createElement('label'), said = document.createElement('output');
        var box = document.createElement('div');
        input.type = 'range';
        input.id = label.htmlFor = 'option-value';
        input.min = -1;
        input.max = rows.length - 1;
        input.value = -1;
        label.textContent = document.querySelector('#one-option th').textContent;
        box.className = 'slider';
        box.appendChild(label);
        box.appendChild(said);
        box.appendChild(input);
        slider.className = 'controls';
        slider.appendChild(box);
        var mark = function () {
            var row = rows[+input.value];
            chosen = row ? +row.getAttribute('data-run') : -1;
            said.textContent = row ? row.cells[0].textContent : 'all';
            input.setAttribute('aria-valuetext', said.textContent);
            rows.forEach(function (r) { r.classList.toggle('chosen', r === row); });
        };
        input.addEventListener('input', function () {
            mark();
            all();
        });
        mark();
    }
    form.hidden = false;
    form.addEventListener('input', function (ev) {
        if (ev.target.name === 'x') form.elements.from.value = form.elements.to.value = '';
        all();
    });
    form.addEventListener('submit', function (ev) { ev.preventDefault(); });
    form.addEventListener('reset', function () { setTimeout(all, 0); });
    document.addEventListener('keydown', function (ev) { if (ev.key === 'Escape') everything(); });
})();
