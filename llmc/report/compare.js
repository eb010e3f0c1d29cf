/* compare.js - the charts of several runs (compare.h): by step, tokens or time, with a logarithmic axis, for a range of x.
 *
 * Without this script the page has its static drawings. The functions above the page's part have no other state than
 * their arguments, and the tests run them without a browser.
 *
 * A comment has lines of its own: it is left out of the page, like the indentation.
 */
var compare = (function () {
    /* Returns a round distance between ticks, 1, 2 or 5 times a power of ten, that gives at most about `most` of them. */
    function distance(range, most) {
        var raw = range / most, power = Math.pow(10, Math.floor(Math.log(raw) / Math.LN10 + 1e-9)), digit = raw / power;
        return power * (digit <= 1.0001 ? 1 : digit <= 2.0001 ? 2 : digit <= 5.0001 ? 5 : 10);
    }

    /* Returns the points [x, y] of a line that can be drawn: finite, within the range, positive on a logarithmic axis. */
    function points(line, mode, log, from, to) {
        return line[mode].map(function (x, i) { return [x, line.value[i]]; }).filter(function (p) {
            return p[0] != null && p[1] != null && p[0] >= from && p[0] <= to && (!log || p[1] > 0);
        });
    }

    /* Returns [lowest, highest] of coordinate k of all points, or null if there are none; equal ones get some room. */
    function extent(lists, k) {
        var low = Infinity, high = -Infinity;
        lists.forEach(function (list) {
            list.forEach(function (p) {
                low = Math.min(low, p[k]);
                high = Math.max(high, p[k]);
            });
        });
        if (low > high) return null;
        if (low === high) {
            var room = low ? Math.abs(low) / 2 : 0.5;
            return [low - room, high + room];
        }
        return [low, high];
    }

    /* Returns a function from values in [low, high] to places in [a, b]. */
    function scale(low, high, a, b, log) {
        function of(v) { return log ? Math.log(v) / Math.LN10 : v; }
        var l = of(low), h = of(high);
        return function (v) { return a + (b - a) * (h > l ? (of(v) - l) / (h - l) : 0.5); };
    }

    /* Returns the values of the ticks within [low, high]. A logarithmic axis has powers of ten, or, if there are fewer
     * than two, the same ticks as the other axis. */
    function ticks(low, high, most, log) {
        var all = [], i, step;
        if (log) {
            step = Math.max(1, Math.ceil((Math.log(high / low) / Math.LN10) / most));
            for (i = Math.ceil(Math.log(low) / Math.LN10 - 1e-9); Math.pow(10, i) <= high * (1 + 1e-9); i += step)
                all.push(Math.pow(10, i));
            if (all.length > 1) return all;
            all = [];
        }
        step = distance(high - low, most);
        for (i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) all.push(i * step);
        return all;
    }

    /* Returns a value as text of about four digits. */
    function say(v, share) {
        if (share) return +(100 * v).toPrecision(4) + '%';
        var a = Math.abs(v);
        return a >= 1e6 || (a && a < 1e-3) ? v.toExponential(1) : String(+v.toPrecision(4));
    }

    /* Returns the d of a path through the points. */
    function path(list, X, Y) {
        return list.map(function (p, i) {
            return (i ? 'L' : 'M') + X(p[0]).toFixed(1) + ' ' + Y(p[1]).toFixed(1);
        }).join('') + (list.length === 1 ? 'h0' : '');
    }

    return {distance: distance, points: points, extent: extent, scale: scale, ticks: ticks, say: say, path: path};
})();

if (typeof document !== 'undefined') (function () {
    var form = document.getElementById('controls'), N = 'http://www.w3.org/2000/svg', charts = [], started = false;
    var LEFT = 40, RIGHT = 330, TOP = 22, BOTTOM = 156;
    /* CHART_COLOURS and CHART_DASHES of chart.h. */
    var COLOURS = 8, DASHES = 5;

    function make(to, tag, o, text) {
        var e = document.createElementNS(N, tag);
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

    /* Draws a chart again. */
    function draw(c) {
        var s = settings(), svg = c.svg, y;
        var lists = c.d.lines.map(function (l) { return compare.points(l, s.mode, s.log, s.from, s.to); });
        var x = compare.extent(lists, 0);
        while (svg.firstChild) svg.removeChild(svg.firstChild);
        c.range = x;
        if (!x) {
            make(svg, 'text', {class: 'axis', x: 185, y: 90, 'text-anchor': 'middle'}, 'no value to draw');
            return;
        }
        y = compare.extent(lists, 1);
        if (s.log && y[0] <= 0) y[0] = y[1] / 10;
        var X = compare.scale(x[0], x[1], LEFT, RIGHT, false), Y = compare.scale(y[0], y[1], BOTTOM, TOP, s.log);
        compare.ticks(y[0], y[1], 5, s.log).forEach(function (v) {
            make(svg, 'path', {class: 'grid', d: 'M' + LEFT + ' ' + Y(v).toFixed(1) + 'H' + RIGHT});
            make(svg, 'text', {class: 'tick', x: LEFT - 5, y: Y(v) + 3.2, 'text-anchor': 'end'},
                compare.say(v, c.d.share));
        });
        compare.ticks(x[0], x[1], 4, false).forEach(function (v) {
            make(svg, 'path', {class: 'grid base', d: 'M' + X(v).toFixed(1) + ' ' + BOTTOM + 'v3'});
            make(svg, 'text', {class: 'tick', x: X(v), y: BOTTOM + 14, 'text-anchor': 'middle'}, compare.say(v));
        });
        make(svg, 'text', {class: 'axis', x: RIGHT + 8, y: BOTTOM + 14}, s.mode === 'time' ? 's' : s.mode);
        make(svg, 'text', {class: 'axis', x: LEFT - 5, y: 12}, c.d.unit + (s.log ? ', logarithmic' : ''));
        lists.forEach(function (list, i) {
            if (!list.length) return;
            var run = c.d.lines[i].run, last = list[list.length - 1];
            var g = make(svg, 'g', {class: 'd' + run % DASHES}), colour = 'a' + run % COLOURS;
            make(g, 'path', {class: 'line ' + colour, d: compare.path(list, X, Y)});
            make(svg, 'text', {class: 'last ' + colour, x: X(last[0]) + 4, y: Y(last[1]) + 3.8},
                String.fromCharCode(65 + run));
        });
    }

    function all() {
        started = true;
        charts.forEach(draw);
    }

    /* The value of x under the pointer. */
    function place(c, ev) {
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
            begin = place(c, ev);
            mark = make(c.svg, 'rect', {class: 'zoom', y: TOP, height: BOTTOM - TOP, width: 0});
            c.svg.setPointerCapture(ev.pointerId);
        });
        c.svg.addEventListener('pointermove', function (ev) {
            if (begin === null) return;
            var X = compare.scale(c.range[0], c.range[1], LEFT, RIGHT, false), a = X(begin), b = X(place(c, ev));
            mark.setAttribute('x', Math.min(a, b));
            mark.setAttribute('width', Math.abs(a - b));
        });
        c.svg.addEventListener('pointerup', function (ev) {
            if (begin === null) return;
            var end = place(c, ev), from = Math.min(begin, end), to = Math.max(begin, end);
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
        var c = {svg: script.previousElementSibling, d: JSON.parse(script.textContent), range: null};
        charts.push(c);
        listen(c);
    });
    form.hidden = false;
    form.addEventListener('input', function (ev) {
        if (ev.target.name === 'x') form.elements.from.value = form.elements.to.value = '';
        all();
    });
    form.addEventListener('submit', function (ev) { ev.preventDefault(); });
    form.addEventListener('reset', function () { setTimeout(all, 0); });
    document.addEventListener('keydown', function (ev) { if (ev.key === 'Escape') everything(); });
})();
