# {}: who of the cluster is heard
%foreach{peer}{%cluster-peers{}}{\n}{\
	\  %{peer} %readlink{%{mars}/ips/ip-%{peer}} \
	%if{%is-alive{%{peer}}}{alive}{silent}\
	%unless{%is-alive{%{peer}}}{%if{%>={%alive-age{%{peer}}}{0}}{ age: %human-seconds{%alive-age{%{peer}}}}}\n\
}
