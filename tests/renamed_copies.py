"""A function in each language, and the same function with other names for what is its own."""

from __future__ import annotations

import re

JAVA = """
public Map<String, Integer> countWords(List<String> lines, Set<String> stopWords, Integer... limits) {
    Map<String, List<Integer>> places = new HashMap<>();
    Map<String, Integer> counts = new HashMap<>();
    for (String line : lines) {
        List<String> words = Arrays.asList(line.split(" "));
        for (String word : words) {
            if (stopWords.contains(word) || limits.length > LIMIT) {
                continue;
            }
            Map.Entry<String, Integer> old = counts.get(word);
            counts.put(word, old == null ? 1 : old + places.size());
        }
    }
    words.forEach(each -> log.info(each));
    return counts;
}
"""
GO = """
func (s *Server) HandleRequest(ctx context.Context, req *Request, limit int, names []string) (*Response, error) {
	user, err := s.store.Lookup(ctx, req.UserID)
	if err != nil {
		return nil, fmt.Errorf("lookup: %w", err)
	}
	var found int
	items := make([]Item, 0, limit)
	for i, item := range user.Items {
		if i >= limit {
			break
		}
		found = len(names)
		items = append(items, item)
	}
	return &Response{Items: items, Count: found}, nil
}
"""
PHP = """
function findUser($conn, array $names, ?Filter $filter = null) {
    $rows = array();
    $result = mysqli_query($conn, "SELECT * FROM users WHERE name = '" . $names[0] . "'");
    while ($row = mysqli_fetch_assoc($result)) {
        if (count($rows) >= $filter->limit) {
            break;
        }
        $rows[] = $row;
    }
    foreach ($rows as $key => $one) { $this->log($key, $one, $_GET['x']); }
    return $rows;
}
"""
CPP = """
std::vector<int> merge(const std::vector<int>& left, const std::map<std::string, std::vector<int>>& right) {
    std::vector<int> out;
    std::unordered_map<std::string, int> seen;
    size_t i = 0, j = 0;
    while (i < left.size() && j < right.size()) {
        out.push_back(left[i++] + right[j++]);
    }
    for (const auto& [key, value] : right) { seen[key] = value.front(); }
    return out;
}
"""
CSHARP = """
public async Task<List<Order>> LoadAsync(IEnumerable<int> ids, CancellationToken token) {
    Dictionary<int, Order> cache = new Dictionary<int, Order>();
    foreach (int id in ids) {
        Order? found = await _db.FindAsync(id, token);
        if (found == null) {
            _log.Warn("none");
            continue;
        }
        cache[id] = found;
    }
    return cache.Values.OrderBy(order => order.Number).ToList();
}
"""
JAVASCRIPT = """
const load = async (url, retries, delay = 1) => {
  const $el = document.querySelector(options.target);
  const { data, headers: meta } = await fetchJson(url, options);
  const [first, ...rest] = data.items;
  for (const item of rest) {
    $el.append(render(item, meta, retries, delay));
  }
  return first.total;
};
class Reader {
  read(path, handler) {
    try { handler(path); } catch (problem) { console.log(problem, path); }
  }
}
"""
TYPESCRIPT = """
function parse(line: string, limit?: number, ...others: Part[]): Map<string, number> {
  const parts: Array<string> = line.split(",");
  const totals: Map<string, number> = new Map();
  parts.filter((part): boolean => part.length > limit).forEach((part) => {
    totals.set(part, (totals.get(part) ?? 0) + others.length);
  });
  return totals;
}
"""
RUST = """
fn parse_line(line: &str, sep: char, limit: usize) -> Result<Vec<String>, Error> {
    let mut parts: Vec<String> = Vec::new();
    let mut rest = line;
    while let Some(pos) = rest.find(sep) {
        let (head, tail) = rest.split_at(pos);
        parts.push(head.to_string());
        rest = &tail[1..];
        if parts.len() > limit { return Err(Error::TooMany(limit)); }
    }
    match rest.parse() {
        Ok(number) => parts.push(number),
        Err(problem) => log(problem),
    }
    Ok(parts.iter().map(|part| part.trim()).collect())
}
"""
KOTLIN = """
fun summarize(items: List<Item>, limit: Int): Map<String, Int> {
    val totals = mutableMapOf<String, Int>()
    for (item in items) {
        val key = item.name.lowercase()
        totals[key] = (totals[key] ?: 0) + item.count
        if (totals.size > limit) { break }
    }
    items.forEach { entry -> println(entry.name) }
    return totals
}
"""
RUBY = """
def import_rows(path, table, options)
  rows = CSV.read(path, headers: true)
  errors = []
  rows.each_with_index do |row, index|
    begin
      table.create!(row.to_h.slice(*options[:columns]))
    rescue StandardError => error
      errors << [index, error.message]
    end
  end
  errors.map { |place, message| show(place, message) }
end
"""
SHELL = """
deploy() {
  local target=$1
  version=$2
  for host in $(cat "$target"); do
    if ssh $host test -d /srv/app; then
      scp build.tgz $host:/srv/app/$version  # it's the next one
      ssh $host tar xzf ${version}
    fi
  done
}
"""
PYTHON = """
def load(path, indent, *, limit=3):
    first = open(path, indent=indent, limit=limit)
    with lock, (connect(path)) as (stream):
        match first.kind:
            case Gift(value=amount):
                stream.write(amount)
            case [head, *others]:
                stream.write(head, others)
            case other:
                stream.write(other)
    return map(lambda item, base=1: item.key + base, first, key=limit)
"""
FUNCTIONS = {
    "java": (JAVA, "countWords lines stopWords limits places counts line words word old each"),
    "go": (GO, "s HandleRequest ctx req limit names user err found items i item"),
    "php": (PHP, "findUser $conn $names $filter $rows $result $row $key $one"),
    "c++": (CPP, "merge left right out seen i j key value"),
    "c#": (CSHARP, "LoadAsync ids token cache id found order"),
    "javascript": (JAVASCRIPT, "load url retries delay $el data meta first rest item path handler problem Reader"),
    "typescript": (TYPESCRIPT, "parse line limit others parts totals part"),
    "rust": (RUST, "parse_line line sep limit parts rest pos head tail number problem part"),
    "kotlin": (KOTLIN, "summarize items limit totals item key entry"),
    "ruby": (RUBY, "import_rows path table options rows errors row index error place message"),
    "shell": (SHELL, "deploy target version host"),
    "python": (PYTHON, "load path indent limit first stream amount head others other item base"),
}
"""A function and the names that are its own, by language."""


def renamed(language: str) -> str:
    """The function with other names: no attribute, nothing but the shell's variables in a string, no key of an object,
    no argument's name.
    """
    code, names = FUNCTIONS[language]
    for number, name in enumerate(names.split()):
        new = f"{'$' * name.startswith('$')}other{number}"
        if language == "shell":
            code = re.sub(rf"(\$\{{?){name}\b", rf"\1{new}", code)
        argument = r"(?!=\w+[,)])" if language == "python" else ""
        if argument:
            code = (
                code.replace("*, limit=3", f"*, {new}=3")
                if name == "limit"
                else code.replace("base=1", f"{new}=1")
                if name == "base"
                else code
            )
        code = re.sub(
            rf"(?<![\w$])(?<![^.]\.)(?<!->){re.escape(name)}(?![\w!]){argument}", lambda found, new=new: new, code
        )
    return code
