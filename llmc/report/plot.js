/* plot.js - scales, ticks and paths of the charts that the pages' scripts draw.
 *
 * The functions have no other state than their arguments, and the tests run them without a browser.
 *
 * A comment has lines of its own: it is left out of the page, like the indentation.
 */
/* biome-ignore lint/correctness/noUnusedVariables: the scripts after this one use it */
var plot = (function () {
    var SVG = 'http://www.w3.org/2000/svg';

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
        for (i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step && all.length < 64; i++)
            all.push(i * step);
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

    return {SVG: SVG, distance: distance, points: points, extent: extent, scale: scale, ticks: ticks, say: say, path: path};
})();
